// Masked linear maps by tiles of 64 x 64 outputs: y, dX and dW are one product c = a b with the mask on b (y, dX) or on
// c (dW). float32 and float64 by multiply-adds, exact; bfloat16 and float16 by mma.sync m16n8k16 on ldmatrix fragments.
// Two stages of shared memory: the next step's tiles arrive by cp.async, 128 bits each, while this step's are
// multiplied; vectors that the staircase cuts, or that a permutation scatters, go through registers and are masked
// there.
//
// y stops at the extent of its last row, dX starts at the first row that sees its first column, dW writes zeros where
// no row of the tile sees a column: half of the product is skipped.
#include "activation.h"
#include "masked_linear_device.h"

namespace ar_fast::cuda {
namespace {

enum class Product { y, dx, dw };

constexpr int kTile = 64;
static_assert(kTile == mask_tile_size, "a tile of the product lies in one tile of the mask");

template <typename S>
constexpr bool kMatrix = sizeof(S) == 2;
template <typename S>
constexpr int kSteps = kMatrix<S> ? 32 : 16;
template <typename S>
constexpr int kThreads = kMatrix<S> ? 128 : 256;
// Padding of a shared row, so that the rows that a warp reads together lie in different banks.
template <typename S>
constexpr int kPad = Vector<S>::size;

// An operand's tile lies in shared memory as in the matrix. `across`: the sum runs along its columns.
template <typename S, bool across>
struct Tile {
  static constexpr int rows = across ? kTile : kSteps<S>, columns = across ? kSteps<S> : kTile;
  static constexpr int stride = columns + kPad<S>;

  template <bool masked>
  static __device__ __forceinline__ void load(S* shared, const Operand<S>& operand, const DeviceMask& mask, int free,
                                              int step) {
    constexpr int vectors = columns / Vector<S>::size;
    const int first_row = across ? free : step, first_column = across ? step : free;
    for (int i = static_cast<int>(threadIdx.x); i < rows * vectors; i += kThreads<S>) {
      const int r = i / vectors, c = i % vectors * Vector<S>::size;
      S* const place = shared + r * stride + c;
      if (operand.template plain<masked>(mask, first_row + r, first_column + c)) {
        copy_async_16(place, operand.row_data(first_row + r) + first_column + c);
      } else {
        store_vector(place, operand.template fetch<masked>(mask, first_row + r, first_column + c));
      }
    }
  }

  // Element (f of the free dimension, s of the sum).
  static __device__ __forceinline__ const S* at(const S* shared, int f, int s) {
    return shared + (across ? f * stride + s : s * stride + f);
  }
};

template <typename S>
constexpr int kTileSize = kTile * (kSteps<S> + kPad<S>) > kSteps<S> * (kTile + kPad<S>)
                              ? kTile * (kSteps<S> + kPad<S>)
                              : kSteps<S> * (kTile + kPad<S>);

// Sums of one thread. Multiply-adds: thread (x, y) of 16 x 16 owns rows y + 16 i and columns x + 16 j.
template <typename S, bool a_across, bool b_across>
struct Sums {
  using T = Compute<S>;
  T sum[4][4] = {};

  __device__ __forceinline__ void add(const S* a, const S* b) {
    constexpr int depth = Vector<S>::size;
    const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
    for (int s = 0; s < kSteps<S>; s += depth) {
      T left[4][depth], right[4][depth];
      read<a_across>(a, y, s, left);
      read<b_across>(b, x, s, right);
#pragma unroll
      for (int d = 0; d < depth; ++d) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[i][j] = fma(left[i][d], right[j][d], sum[i][j]);
        }
      }
    }
  }

  template <bool across, int depth>
  static __device__ __forceinline__ void read(const S* shared, int first, int s, T (&values)[4][depth]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (across) {
        const Vector<S> vector = load_shared_vector(Tile<S, across>::at(shared, first + 16 * i, s));
#pragma unroll
        for (int d = 0; d < depth; ++d) values[i][d] = vector.values[d];
      } else {
#pragma unroll
        for (int d = 0; d < depth; ++d) values[i][d] = *Tile<S, across>::at(shared, first + 16 * i, s + d);
      }
    }
  }

  template <typename Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
    const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) body(y + 16 * i, x + 16 * j, sum[i][j]);
    }
  }
};

// Matrix instructions: warp (u, v) of 2 x 2 owns 32 rows and 32 columns.
template <typename S, bool a_across, bool b_across>
struct MatrixSums {
  float sum[2][4][4] = {};

  __device__ __forceinline__ void add(const S* a, const S* b) {
    const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int row = warp / 2 * 32, column = warp % 2 * 32;
    // Rows of the four 8 x 8 matrices of a fragment: which eight, and whether along the free dimension or along the
    // sum.
    const int in_matrix = lane % 8, second = lane / 8 % 2 * 8, third = lane / 16 * 8;
#pragma unroll
    for (int s = 0; s < kSteps<S>; s += 16) {
      uint32_t left[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int first = row + 16 * i;
        if constexpr (a_across) {
          load_matrices<false>(left[i], Tile<S, true>::at(a, first + in_matrix + second, s + third));
        } else {
          load_matrices<true>(left[i], Tile<S, false>::at(a, first + second, s + in_matrix + third));
        }
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int first = column + 16 * j;
        uint32_t right[4];
        if constexpr (b_across) {
          load_matrices<false>(right, Tile<S, true>::at(b, first + in_matrix + third, s + second));
        } else {
          load_matrices<true>(right, Tile<S, false>::at(b, first + third, s + in_matrix + second));
        }
        const uint32_t low[2] = {right[0], right[1]}, high[2] = {right[2], right[3]};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply_matrices<S>(sum[i][2 * j], left[i], low);
          multiply_matrices<S>(sum[i][2 * j + 1], left[i], high);
        }
      }
    }
  }

  template <typename Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
    const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int row = warp / 2 * 32 + lane / 4, column = warp % 2 * 32 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) body(row + 16 * i + k / 2 * 8, column + 8 * j + k % 2, sum[i][j][k]);
      }
    }
  }
};

template <typename S>
struct TileArguments {
  DeviceMask mask;
  Operand<S> a, b;
  const S* bias;
  MlpActivation activation;
  S* output;
  int batch;
};

template <typename S, Product product>
__global__ void __launch_bounds__(kThreads<S>) masked_linear_tiles_kernel(TileArguments<S> arguments) {
  constexpr bool a_across = product != Product::dw, b_across = product == Product::y;
  constexpr bool masked = product != Product::dw;
  using Accumulator = std::conditional_t<kMatrix<S>, MatrixSums<S, a_across, b_across>, Sums<S, a_across, b_across>>;
  AR_FAST_SHARED(S, left, [2][kTileSize<S>]);
  AR_FAST_SHARED(S, right, [2][kTileSize<S>]);
  const DeviceMask& mask = arguments.mask;
  const int rows = product == Product::dw ? mask.out_features : arguments.batch;
  const int columns = product == Product::y ? mask.out_features : mask.in_features;
  const int row = static_cast<int>(blockIdx.y) * kTile, column = static_cast<int>(blockIdx.x) * kTile;

  // The steps of the sum that this tile needs.
  int begin = 0, end;
  if constexpr (product == Product::y) {
    end = mask.columns_seen(min(column + kTile, columns) - 1);
  } else if constexpr (product == Product::dx) {
    begin = mask.first_row(column) / kSteps<S> * kSteps<S>;
    end = mask.out_features;
  } else {
    const bool used = mask.tile_used(row, column) && column < mask.columns_seen(min(row + kTile, rows) - 1);
    end = used ? arguments.batch : 0;
  }
  // Steps whose tile of the mask is empty are passed over.
  const auto next_step = [&](int step) {
    if constexpr (masked) {
      constexpr bool along_columns = product == Product::y;
      while (step < end && !mask.tile_used(along_columns ? column : step, along_columns ? step : column)) {
        step += kSteps<S>;
      }
    }
    return step;
  };
  const auto load = [&](int stage, int step) {
    Tile<S, a_across>::template load<false>(left[stage], arguments.a, mask, row, step);
    Tile<S, b_across>::template load<masked>(right[stage], arguments.b, mask, column, step);
    copy_async_commit();
  };

  Accumulator accumulator;
  int stage = 0, step = next_step(begin);
  if (step < end) load(0, step);
  while (step < end) {
    const int following = next_step(step + kSteps<S>);
    if (following < end) {
      load(stage ^ 1, following);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    __syncthreads();
    accumulator.add(left[stage], right[stage]);
    __syncthreads();
    stage ^= 1;
    step = following;
  }

  accumulator.for_each([&](int r, int c, Compute<S> value) {
    r += row;
    c += column;
    if (r >= rows || c >= columns) return;
    int64_t place;
    if constexpr (product == Product::y) {
      const int feature = mask.row(c);
      if (arguments.bias != nullptr) value += to_compute(arguments.bias[feature]);
      value = activate(arguments.activation, value);
      place = static_cast<int64_t>(r) * columns + feature;
    } else if constexpr (product == Product::dx) {
      place = static_cast<int64_t>(r) * columns + mask.column(c);
    } else {
      if (!mask.allows(r, c)) value = 0;
      place = static_cast<int64_t>(mask.row(r)) * columns + mask.column(c);
    }
    from_compute(arguments.output[place], value);
  });
}

template <Product product>
cudaError_t run(const MaskedLinear& m, cudaStream_t stream) {
  return dispatch_masked(m.storage, [&](auto type) {
    using S = decltype(type);
    const MaskPlan& plan = m.mask;
    const Operand<S> input(m.input, m.input_stride, m.batch, plan.in_features, nullptr, plan.columns);
    const Operand<S> weight(m.weight, plan.in_features, plan.out_features, plan.in_features, plan.rows, plan.columns);
    const Operand<S> grad(m.grad_output, m.grad_output_stride, m.batch, plan.out_features, nullptr, plan.rows);
    const TileArguments<S> arguments{DeviceMask(plan), product == Product::y ? input : grad,
                                     product == Product::dw ? input : weight, static_cast<const S*>(m.bias), m.activation,
                                     static_cast<S*>(m.output), static_cast<int>(m.batch)};
    const int64_t rows = product == Product::dw ? plan.out_features : m.batch;
    const int64_t columns = product == Product::y ? plan.out_features : plan.in_features;
    if (rows == 0 || columns == 0) return cudaSuccess;
    const char* name = product == Product::y    ? "masked_linear_tiles"
                       : product == Product::dx ? "masked_linear_grad_input_tiles"
                                                : "masked_linear_grad_weight_tiles";
    return launch({name, dim3(blocks_of(columns, kTile), blocks_of(rows, kTile)), kThreads<S>, 0, stream},
                  masked_linear_tiles_kernel<S, product>, arguments);
  });
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

cudaError_t masked_linear_tiles_cuda(const MaskedLinear& arguments, cudaStream_t stream) {
  return cuda::run<cuda::Product::y>(arguments, stream);
}
cudaError_t masked_linear_grad_input_tiles_cuda(const MaskedLinear& arguments, cudaStream_t stream) {
  return cuda::run<cuda::Product::dx>(arguments, stream);
}
cudaError_t masked_linear_grad_weight_tiles_cuda(const MaskedLinear& arguments, cudaStream_t stream) {
  return cuda::run<cuda::Product::dw>(arguments, stream);
}

}  // namespace ar_fast
