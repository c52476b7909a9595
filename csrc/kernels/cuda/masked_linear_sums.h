// What a block of threads does with one tile of a masked product c = a b: operands in shared memory, and the sums that
// its threads hold in registers.
#pragma once

#include "masked_linear_device.h"

namespace ar_fast::cuda {

// tile_ x tile_ outputs. matrix_: by mma.sync, four warps that own a quarter each (float32: operands rounded to tf32);
// otherwise by multiply-adds, exact.
template <typename S, bool matrix_, int tile_>
struct TileScheme {
  using Storage = S;
  static constexpr int rows = tile_, columns = tile_, each = tile_ / 16;
  static constexpr bool matrix = matrix_;
  // Of the sum: what is in shared memory at a time, 64 bytes of every row, and how many such steps are there at once.
  static constexpr int steps = matrix ? 64 / static_cast<int>(sizeof(S)) : 16;
  static constexpr int stages = matrix ? 3 : 2;
  static constexpr int threads = matrix ? 128 : 256;
  // Blocks that the registers of a multiprocessor must hold: what a thread may use follows.
  static constexpr int blocks = matrix || sizeof(S) == 8 ? 2 : 3;
  static constexpr bool needs_sm80 = tile_ > 64 || (matrix && sizeof(S) == 4);
};

// rows_ x 128 outputs of float32 by multiply-adds, exact, 8 x 8 sums a thread: it reads half as much of shared memory
// for each of them. A sum may be split over blocks.
template <int rows_>
struct WideScheme {
  using Storage = float;
  static constexpr int rows = rows_, columns = 128, each = 8;
  static constexpr bool matrix = false, needs_sm80 = false;
  static constexpr int steps = 16, stages = 2;
  static constexpr int threads = rows / each * (columns / each);
  static constexpr int blocks = rows == 32 ? 6 : 3;
};

// An operand's tile lies in shared memory as in the matrix. is_left: it is a's, else b's. `across`: the sum runs along
// its columns.
template <typename Scheme, bool is_left, bool across>
struct Tile {
  using S = typename Scheme::Storage;
  static constexpr int vector = Vector<S>::size;
  static constexpr int outputs = is_left ? Scheme::rows : Scheme::columns;
  static constexpr int rows = across ? outputs : Scheme::steps, columns = across ? Scheme::steps : outputs;
  static constexpr int stride = columns + (Scheme::matrix ? 0 : vector);
  static constexpr int size = rows * stride;

  // Place of element (r, c). What a warp reads together lies in different banks: for multiply-adds since rows are
  // padded, for fragments since the vectors of a row are permuted, by a permutation that eight rows (four of float32,
  // where it is read by elements) have different ones of. Rows of 64 bytes share a line of the banks with the next.
  static __device__ __forceinline__ int place(int r, int c) {
    if constexpr (!Scheme::matrix) return r * stride + c;
    const int permutation = across ? r / 2 % 4 : sizeof(S) == 2 ? r % 8 : r % 4 * 2;
    return r * stride + (c / vector ^ permutation) * vector + c % vector;
  }

  // Element (f of the free dimension, s of the sum).
  static __device__ __forceinline__ const S* at(const S* shared, int f, int s) {
    return shared + (across ? place(f, s) : place(s, f));
  }

  // Starts the copy of the tile whose first element is (first_row, first_column); what lies beyond the operand is zero,
  // and with `masked` what the mask hides.
  static __device__ __forceinline__ void load(S* shared, const Operand<S>& operand, const DeviceMask& mask,
                                              int first_row, int first_column, bool masked) {
    constexpr int vectors = columns / vector, stride_of_rows = Scheme::threads / vectors;
    static_assert(rows % stride_of_rows == 0, "every thread copies the same number of vectors");
    const int t = static_cast<int>(threadIdx.x), c = t % vectors * vector;
    if (!masked && operand.aligned && first_row + rows <= operand.rows && first_column + columns <= operand.columns) {
      const int r = t / vectors;
      if (operand.row_map == nullptr) {
        const S* source = operand.data + (first_row + r) * operand.stride + first_column + c;
#pragma unroll
        for (int i = 0; i < rows; i += stride_of_rows) {
          copy_async_16(shared + place(r + i, c), source);
          source += stride_of_rows * operand.stride;
        }
      } else {
#pragma unroll
        for (int i = 0; i < rows; i += stride_of_rows) {
          copy_async_16(shared + place(r + i, c), operand.row_data(first_row + r + i) + first_column + c);
        }
      }
      return;
    }
    // At the edges of the matrix and of the mask, and for operands that no vector fits.
#pragma unroll(rows == 2 * stride_of_rows ? 2 : 1)
    for (int r = t / vectors; r < rows; r += stride_of_rows) {
      if (masked) {
        copy<true>(shared + place(r, c), operand, mask, first_row + r, first_column + c);
      } else {
        copy<false>(shared + place(r, c), operand, mask, first_row + r, first_column + c);
      }
    }
  }

 private:
  template <bool masked>
  static __device__ __forceinline__ void copy(S* shared, const Operand<S>& operand, const DeviceMask& mask, int r,
                                              int c) {
    if (operand.template plain<masked>(mask, r, c)) {
      copy_async_16(shared, operand.row_data(r) + c);
    } else {
      store_vector(shared, operand.template fetch<masked>(mask, r, c));
    }
  }
};

// Multiply-adds: thread (x, y), of 16 across, owns rows y + down i and columns x + 16 j.
template <typename Scheme, bool a_across, bool b_across>
struct Sums {
  using S = typename Scheme::Storage;
  using T = Compute<S>;
  static constexpr int each = Scheme::each, down = Scheme::rows / each;
  static_assert(Scheme::columns == 16 * each && Scheme::threads == 16 * down, "every output has a thread");
  static constexpr int together = 1;  // consecutive columns of for_each
  T sum[each][each] = {};

  __device__ __forceinline__ void add(const S* a, const S* b) {
    constexpr int depth = Vector<S>::size;
    const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
    for (int s = 0; s < Scheme::steps; s += depth) {
      T right[each][depth];
#pragma unroll
      for (int j = 0; j < each; ++j) read<Tile<Scheme, false, b_across>, b_across>(b, x + 16 * j, s, right[j]);
#pragma unroll
      for (int i = 0; i < each; ++i) {
        T left[depth];
        read<Tile<Scheme, true, a_across>, a_across>(a, y + down * i, s, left);
#pragma unroll
        for (int d = 0; d < depth; ++d) {
#pragma unroll
          for (int j = 0; j < each; ++j) sum[i][j] = fma(left[d], right[j][d], sum[i][j]);
        }
      }
    }
  }

  template <typename Shared, bool across, int depth>
  static __device__ __forceinline__ void read(const S* shared, int free, int s, T (&values)[depth]) {
    if constexpr (across) {
      const Vector<S> vector = load_shared_vector(Shared::at(shared, free, s));
#pragma unroll
      for (int d = 0; d < depth; ++d) values[d] = vector.values[d];
    } else {
#pragma unroll
      for (int d = 0; d < depth; ++d) values[d] = *Shared::at(shared, free, s + d);
    }
  }

  // body(row, column, sums) for all sums of this thread, where `sums` is an array of consecutive columns.
  template <typename Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
    const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
    for (int i = 0; i < each; ++i) {
#pragma unroll
      for (int j = 0; j < each; ++j) {
        const T values[together] = {sum[i][j]};
        body(y + down * i, x + 16 * j, values);
      }
    }
  }

  // body(row, column) for the same places, one after another in a loop.
  template <typename Body>
  static __device__ __forceinline__ void for_each_place(const Body& body) {
    const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
#pragma unroll 1
    for (int i = 0; i < each * each; ++i) body(y + i / each * down, x + i % each * 16);
  }
};

// Matrix instructions: warp (u, v) of 2 x 2 owns a quarter of the tile. A fragment is 16 of the free dimension by 32
// bytes of the sum, whatever the storage: 16 elements of 16 bits, 8 of tf32.
template <typename Scheme, bool a_across, bool b_across>
struct MatrixSums {
  using S = typename Scheme::Storage;
  static constexpr int side = Scheme::rows / 2, fragments = side / 16, depth = 32 / static_cast<int>(sizeof(S));
  static constexpr int together = 2;  // consecutive columns of for_each
  float sum[fragments][2 * fragments][4] = {};

  __device__ __forceinline__ void add(const S* a, const S* b) {
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize, row = warp / 2 * side, column = warp % 2 * side;
#pragma unroll
    for (int s = 0; s < Scheme::steps; s += depth) {
      uint32_t left[fragments][4];
#pragma unroll
      for (int i = 0; i < fragments; ++i) read<a_across, true>(left[i], a, row + 16 * i, s);
#pragma unroll
      for (int j = 0; j < fragments; ++j) {
        uint32_t right[4];
        read<b_across, false>(right, b, column + 16 * j, s);
        const uint32_t low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
#pragma unroll
        for (int i = 0; i < fragments; ++i) {
          multiply_matrices<S>(sum[i][2 * j], left[i], low);
          multiply_matrices<S>(sum[i][2 * j + 1], left[i], high);
        }
      }
    }
  }

  // The registers that multiply_matrices takes: one fragment of a, or with `is_left` unset two of b, one after the
  // other. Each register is an 8 x 16 bytes matrix of (free, sum): the second of a is the next eight of the free
  // dimension, the second of b the next bytes of the sum.
  template <bool across, bool is_left>
  static __device__ __forceinline__ void read(uint32_t (&fragment)[4], const S* shared, int first, int s) {
    using Shared = Tile<Scheme, is_left, across>;
    constexpr int half = depth / 2;
    const int lane = lane_id(), in_matrix = lane % 8;
    const int free = (is_left ? lane / 8 % 2 : lane / 16) * 8, along = (is_left ? lane / 16 : lane / 8 % 2) * half;
    if constexpr (across) {
      load_matrices<false>(fragment, Shared::at(shared, first + in_matrix + free, s + along));
    } else if constexpr (sizeof(S) == 2) {
      load_matrices<true>(fragment, Shared::at(shared, first + free, s + in_matrix + along));
    } else {  // ldmatrix transposes elements of 16 bits only
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int f = (is_left ? i % 2 : i / 2) * 8 + lane / 4, k = (is_left ? i / 2 : i % 2) * half + lane % 4;
        fragment[i] = __float_as_uint(*Shared::at(shared, first + f, s + k));
      }
    }
    if constexpr (sizeof(S) == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) fragment[i] = round_to_tf32(fragment[i]);
    }
  }

  // As in Sums.
  template <typename Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
    const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int row = warp / 2 * side + lane / 4, column = warp % 2 * side + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < fragments; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * fragments; ++j) {
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
          const float values[together] = {sum[i][j][k], sum[i][j][k + 1]};
          body(row + 16 * i + k / 2 * 8, column + 8 * j, values);
        }
      }
    }
  }

  template <typename Body>
  static __device__ __forceinline__ void for_each_place(const Body& body) {
    const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int row = warp / 2 * side + lane / 4, column = warp % 2 * side + lane % 4 * 2;
    constexpr int across = 2 * fragments;
#pragma unroll 1
    for (int i = 0; i < 2 * fragments * across; ++i) body(row + i / across * 8, column + i % across * 8);
  }
};

}  // namespace ar_fast::cuda
