// Masked linear maps by tiles of outputs: y, dX and dW are one product c = a b with the mask on b (y, dX) or on c (dW).
// While one step of the sum is multiplied, the next ones arrive in shared memory by cp.async, 128 bits each; vectors
// that the staircase cuts, or that a permutation scatters, go through registers and are masked there.
//
// y stops at the extent of its last row, dX starts at the first row that sees its first column, dW writes zeros where
// no row of the tile sees a column: half of the product is skipped. Where the tiles of y or dX are too few for the GPU,
// their sums are split over blocks, in chunks that another kernel adds in their order.
#pragma once

#include "activation.h"
#include "masked_linear_sums.h"

namespace ar_fast::cuda {

using Product = MaskedLinearProduct;

template <typename S>
struct TileArguments {
  DeviceMask mask;
  Operand<S> a, b;
  const S* bias;
  Activation activation;
  S* output;
  int batch;
  unsigned row_tiles, column_tiles;  // of the output
  int chunk;                       // of the sum, which is split over blocks; 0 = it is not
  Compute<S>* partial;             // [chunks][batch][columns of all tiles, in sorted order]
  bool paired;                       // the output is in sorted order, its columns 2 k and 2 k + 1 aligned as one number
};

template <typename Scheme>
struct TileStages {
  // Of a tile in either direction.
  template <bool is_left>
  static constexpr int size =
      Tile<Scheme, is_left, true>::size > Tile<Scheme, is_left, false>::size ? Tile<Scheme, is_left, true>::size
                                                                             : Tile<Scheme, is_left, false>::size;
  static constexpr size_t bytes =
      size_t{Scheme::stages} * (size<true> + size<false>) * sizeof(typename Scheme::Storage);
};

// What a tile of outputs needs of the sum: the steps begin ... end - 1. Of the mask on b (y, dX), the nested plan's has
// no zeros in steps full_begin ... full_end - 1. `cut`: the mask on c (dW) allows some outputs of the tile and not all.
struct Steps {
  int begin, end, full_begin, full_end;
  bool cut;
};

// Of the output's tile at (row, column), whose last column is `last`.
template <typename Scheme, Product product>
__device__ __forceinline__ Steps steps_of(const DeviceMask& mask, int batch, int row, int column, int last) {
  const bool nested = mask.extents != nullptr;
  if constexpr (product == Product::y) return {0, mask.columns_seen(last), 0, nested ? mask.extent(column) : 0, false};
  if constexpr (product == Product::grad_input) {
    const int begin = mask.first_row(column) / Scheme::steps * Scheme::steps;
    return {begin, mask.out_features, mask.first_row(last), mask.out_features, false};
  }
  int kind;
  if (nested) {
    const bool used = column < mask.extent(min(row + Scheme::rows, mask.out_features) - 1);
    kind = !used ? 0 : last < mask.extent(row) ? 1 : 2;
  } else {
    kind = mask.tiles_kind(row, column, Scheme::rows, Scheme::columns);
  }
  return {0, kind == 0 ? 0 : batch, 0, 0, kind == 2};
}

// y = f(y), of a tile whose every element the thread that stored it takes again: while it is in the cache still, in a
// loop, since f unrolled over all sums of a thread would be most of the kernel.
template <typename Accumulator, typename S>
__device__ __forceinline__ void activate_stored(const TileArguments<S>& arguments, int row, int column, int rows,
                                                int columns) {
  Accumulator::for_each_place([&](int r, int c) {
    r += row;
    c += column;
    if (r >= rows) return;
#pragma unroll
    for (int i = 0; i < Accumulator::together; ++i) {
      if (c + i >= columns) return;
      S& stored = arguments.output[static_cast<int64_t>(r) * columns + arguments.mask.row(c + i)];
      from_compute(stored, activate(arguments.activation, to_compute(stored)));
    }
  });
}

// What is stored of a sum in the output's own column.
template <Product product, typename S>
__device__ __forceinline__ Compute<S> finished(const TileArguments<S>& arguments, int output_column, Compute<S> sum) {
  if (product != Product::y) return sum;
  if (arguments.bias != nullptr) sum += to_compute(arguments.bias[output_column]);
  return rectify(arguments.activation, sum);
}

// Row r and column c of y or dX, from the weights that the mask allows.
template <Product product, typename S>
__device__ __forceinline__ Compute<S> sum_of_allowed(const TileArguments<S>& arguments, int r, int c) {
  const DeviceMask& mask = arguments.mask;
  const S* const other = arguments.a.row_data(r);
  Compute<S> sum = 0;
#pragma unroll 1
  for (int s = 0; s < arguments.a.columns; ++s) {
    const int weight_row = product == Product::y ? c : s, weight_column = product == Product::y ? s : c;
    if (!mask.allows(weight_row, weight_column)) continue;
    const S weight = arguments.b.row_data(weight_row)[mask.column(weight_column)];
    sum = fma(to_compute(weight), to_compute(other[product == Product::y ? mask.column(s) : mask.row(s)]), sum);
  }
  return sum;
}

// A masked weight is a zero in its tile, whose product with what is not finite is NaN. So what is NaN of the parts of
// y or dX that the thread stored is computed again.
template <typename Accumulator, Product product, typename S>
__device__ __forceinline__ void recompute_stored(const TileArguments<S>& arguments, int row, int column, int rows,
                                                 int columns) {
  const DeviceMask& mask = arguments.mask;
  Accumulator::for_each_place([&](int r, int c) {
    r += row;
    c += column;
    if (r >= rows) return;
#pragma unroll 1
    for (int i = c; i < min(c + Accumulator::together, columns); ++i) {
      const int output_column = product == Product::y ? mask.row(i) : mask.column(i);
      S& stored = arguments.output[static_cast<int64_t>(r) * columns + output_column];
      if (to_compute(stored) == to_compute(stored)) continue;
      from_compute(stored, finished<product>(arguments, output_column, sum_of_allowed<product>(arguments, r, i)));
    }
  });
}

// One of the output's tiles. A block's place in the grid is a place in the order of work: the tiles with the longest
// sums come first, so that short ones fill the end.
template <typename Scheme, Product product>
__device__ __forceinline__ void make_tile(const TileArguments<typename Scheme::Storage>& arguments) {
  using S = typename Scheme::Storage;
  constexpr bool a_across = product != Product::grad_weight, b_across = product == Product::y;
  constexpr bool masked = product != Product::grad_weight;
  using Accumulator =
      std::conditional_t<Scheme::matrix, MatrixSums<Scheme, a_across, b_across>, Sums<Scheme, a_across, b_across>>;
  AR_FAST_DYNAMIC_SHARED(S, left);  // [stages][size], then the same of b
  using Stages = TileStages<Scheme>;
  S* const right = left + Scheme::stages * Stages::template size<true>;
  const DeviceMask& mask = arguments.mask;
  const int rows = product == Product::grad_weight ? mask.out_features : arguments.batch;
  const int columns = product == Product::y ? mask.out_features : mask.in_features;
  const unsigned tiles = arguments.row_tiles * arguments.column_tiles;
  const int split = static_cast<int>(blockIdx.x / tiles);
  unsigned row_tile = blockIdx.x % tiles % arguments.row_tiles;
  unsigned column_tile = blockIdx.x % tiles / arguments.row_tiles;
  if (product == Product::y) column_tile = arguments.column_tiles - 1 - column_tile;
  if (product == Product::grad_weight) row_tile = arguments.row_tiles - 1 - row_tile;
  const int row = static_cast<int>(row_tile) * Scheme::rows, column = static_cast<int>(column_tile) * Scheme::columns;
  Steps steps =
      steps_of<Scheme, product>(mask, arguments.batch, row, column, min(column + Scheme::columns, columns) - 1);
  if (masked && arguments.chunk > 0) {
    steps.begin = max(steps.begin, split * arguments.chunk);
    steps.end = min(steps.end, (split + 1) * arguments.chunk);
    if (steps.begin >= steps.end) return;  // the whole block: this chunk of the tile is not added
  }

  // Of the mask on the step's tile of b: empty (0), full (1) or mixed (2).
  const auto kind = [&](int step) {
    if (!masked) return 1;
    if (mask.extents != nullptr) {
      return step >= steps.full_begin && step + Scheme::steps <= steps.full_end ? 1 : 2;
    }
    return product == Product::y ? mask.tiles_kind(column, step, Scheme::columns, Scheme::steps)
                                 : mask.tiles_kind(step, column, Scheme::steps, Scheme::columns);
  };
  // The next step that is to be loaded, and how many are loaded and not multiplied yet.
  int step = steps.begin, loaded = 0;
  const auto load_next = [&](int stage) {
    int step_kind = 0;
    while (step < steps.end && (step_kind = kind(step)) == 0) step += Scheme::steps;
    if (step < steps.end) {
      const int a_row = a_across ? row : step, a_column = a_across ? step : row;
      const int b_row = b_across ? column : step, b_column = b_across ? step : column;
      Tile<Scheme, true, a_across>::load(left + stage * Stages::template size<true>, arguments.a, mask, a_row, a_column,
                                         false);
      Tile<Scheme, false, b_across>::load(right + stage * Stages::template size<false>, arguments.b, mask, b_row,
                                          b_column, step_kind == 2);
      step += Scheme::steps;
      ++loaded;
    }
    copy_async_commit();  // a group for every stage, so that a wait can count them
  };

  Accumulator accumulator;
  const auto next = [](int stage) { return stage + 1 == Scheme::stages ? 0 : stage + 1; };
  // The first turns only load, to be ahead by all stages but one.
  int ahead = 0, filled = 0, read = 0;
  while (ahead + 1 < Scheme::stages || loaded > 0) {
    const bool multiplies = ahead + 1 == Scheme::stages;
    if (multiplies) {
      copy_async_wait<Scheme::stages - 2>();
      // Past this barrier the stage to be read is there for all threads, and nobody reads the one to be filled.
      __syncthreads();
    }
    load_next(filled);
    filled = next(filled);
    if (multiplies) {
      accumulator.add(left + read * Stages::template size<true>, right + read * Stages::template size<false>);
      read = next(read);
      --loaded;
    } else {
      ++ahead;
    }
  }

  if constexpr (masked && std::is_same_v<Scheme, WideScheme<Scheme::rows>>) {
    if (arguments.chunk > 0) {
      const int64_t width = static_cast<int64_t>(arguments.column_tiles) * Scheme::columns;
      Compute<S>* const partial = arguments.partial + split * rows * width;
      accumulator.for_each([&](int r, int c, const auto& sums) {
        r += row;
        c += column;
        if (r < rows) partial[r * width + c] = sums[0];
      });
      return;
    }
  }
  bool not_a_number = false;
  const auto stored = [&](int output_column, Compute<S> sum) {
    not_a_number |= sum != sum;
    S result;
    from_compute(result, finished<product>(arguments, output_column, sum));
    return result;
  };
  const bool inside = row + Scheme::rows <= rows && column + Scheme::columns <= columns;
  if (Scheme::matrix && arguments.paired && !steps.cut && inside) {
    S* const output = arguments.output + static_cast<int64_t>(row) * columns + column;
    accumulator.for_each([&](int r, int c, const auto& sums) {
      if constexpr (Accumulator::together == 2) {
        store_pair(output + static_cast<int64_t>(r) * columns + c, stored(column + c, sums[0]),
                   stored(column + c + 1, sums[1]));
      }
    });
  } else {
    accumulator.for_each([&](int r, int c, const auto& sums) {
      r += row;
      c += column;
      if (r >= rows) return;
      const int64_t output_row = product == Product::grad_weight ? mask.row(r) : r;
#pragma unroll
      for (int i = 0; i < Accumulator::together; ++i) {
        if (c + i >= columns) return;
        const int output_column = product == Product::y ? mask.row(c + i) : mask.column(c + i);
        const bool allowed = !steps.cut || mask.allows(r, c + i);
        arguments.output[output_row * columns + output_column] = stored(output_column, allowed ? sums[i] : 0);
      }
    });
  }
  if constexpr (masked) {
    if (not_a_number) recompute_stored<Accumulator, product>(arguments, row, column, rows, columns);
  }
  if (product == Product::y && !is_rectifier(arguments.activation)) {
    activate_stored<Accumulator>(arguments, row, column, rows, columns);
  }
}

template <typename Scheme, Product product>
__global__ void __launch_bounds__(Scheme::threads, Scheme::blocks)
    masked_linear_tiles_kernel(TileArguments<typename Scheme::Storage> arguments) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  if constexpr (!Scheme::needs_sm80) make_tile<Scheme, product>(arguments);
#else
  make_tile<Scheme, product>(arguments);
#endif
}

// Adds the chunks of a product that is split over blocks, in their order. A warp has the 128 outputs of a tile's row.
constexpr int kAddThreads = 256;
constexpr int kAddColumns = 4 * kAddThreads;  // of a row, by a block

template <typename Scheme, Product product>
__global__ void __launch_bounds__(kAddThreads, 4) masked_linear_add_kernel(TileArguments<float> arguments) {
  constexpr int kAhead = 8;
  static_assert(Scheme::columns == 4 * kWarpSize, "a warp has a tile's columns, a vector each lane");
  const DeviceMask& mask = arguments.mask;
  const int columns = product == Product::y ? mask.out_features : mask.in_features;
  const unsigned across = (static_cast<unsigned>(columns) + kAddColumns - 1) / kAddColumns;
  const int row = static_cast<int>(blockIdx.x / across), warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int column = static_cast<int>(blockIdx.x % across) * kAddColumns + warp * Scheme::columns;
  if (column >= columns) return;  // a whole warp
  const Steps steps =
      steps_of<Scheme, product>(mask, arguments.batch, row, column, min(column + Scheme::columns, columns) - 1);
  const int begin = steps.begin / arguments.chunk;
  const int end = steps.begin < steps.end ? (steps.end + arguments.chunk - 1) / arguments.chunk : begin;
  const int first_column = column + 4 * lane_id();
  const int64_t width = static_cast<int64_t>(arguments.column_tiles) * Scheme::columns;
  const int64_t stride = arguments.batch * width;
  const float* const partial = arguments.partial + row * width + first_column;
  float sums[4] = {};
  for (int first = begin; first < end; first += kAhead) {
    Vector<float> read[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) read[i] = load_vector(partial + min(first + i, end - 1) * stride);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[j] = first + i < end ? sums[j] + read[i].values[j] : sums[j];
    }
  }
#pragma unroll 1
  for (int j = 0; j < 4; ++j) {
    const int c = first_column + j;
    if (c >= columns) return;
    float sum = j == 0 ? sums[0] : j == 1 ? sums[1] : j == 2 ? sums[2] : sums[3];
    if (sum != sum) sum = sum_of_allowed<product>(arguments, row, c);
    const int output_column = product == Product::y ? mask.row(c) : mask.column(c);
    float value = finished<product>(arguments, output_column, sum);
    if (product == Product::y && !is_rectifier(arguments.activation)) value = activate(arguments.activation, value);
    arguments.output[static_cast<int64_t>(row) * columns + output_column] = value;
  }
}

template <typename S>
struct TileOperands {
  Operand<S> a, b;
};

template <typename S>
TileOperands<S> operands_of(Product product, const MaskedLinear& m) {
  const MaskPlan& plan = m.mask;
  const Operand<S> input(m.input, m.input_stride, m.batch, plan.in_features, nullptr, plan.columns);
  const Operand<S> weight(m.weight, plan.in_features, plan.out_features, plan.in_features, plan.rows, plan.columns);
  const Operand<S> grad(m.grad_output, m.grad_output_stride, m.batch, plan.out_features, nullptr, plan.rows);
  return {product == Product::y ? input : grad, product == Product::grad_weight ? input : weight};
}

inline int64_t output_rows(Product product, const MaskedLinear& m) {
  return product == Product::grad_weight ? m.mask.out_features : m.batch;
}

inline int64_t output_columns(Product product, const MaskedLinear& m) {
  return product == Product::y ? m.mask.out_features : m.mask.in_features;
}

template <typename Scheme, Product product>
cudaError_t launch_tiles(const MaskedLinear& m, cudaStream_t stream, int chunk = 0, void* scratch = nullptr) {
  using S = typename Scheme::Storage;
  const MaskPlan& plan = m.mask;
  const TileOperands<S> operands = operands_of<S>(product, m);
  const int64_t rows = output_rows(product, m), columns = output_columns(product, m);
  const unsigned row_tiles = blocks_of(rows, Scheme::rows), column_tiles = blocks_of(columns, Scheme::columns);
  int64_t blocks = static_cast<int64_t>(row_tiles) * column_tiles;
  if (chunk > 0) blocks *= blocks_of(operands.a.columns, chunk);
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const bool rows_sorted = product == Product::grad_input || plan.rows == nullptr;
  const bool columns_sorted = product == Product::y || plan.columns == nullptr;
  const bool paired = rows_sorted && columns_sorted && columns % 2 == 0 &&
                      reinterpret_cast<uintptr_t>(m.output) % (2 * sizeof(S)) == 0;
  const TileArguments<S> arguments{DeviceMask(plan),
                                   operands.a,
                                   operands.b,
                                   static_cast<const S*>(m.bias),
                                   m.activation,
                                   static_cast<S*>(m.output),
                                   static_cast<int>(m.batch),
                                   row_tiles,
                                   column_tiles,
                                   chunk,
                                   static_cast<Compute<S>*>(scratch),
                                   paired};
  const char* name = product == Product::y            ? "masked_linear_tiles"
                     : product == Product::grad_input ? "masked_linear_grad_input_tiles"
                                                      : "masked_linear_grad_weight_tiles";
  const cudaError_t error =
      launch({name, dim3(static_cast<unsigned>(blocks)), Scheme::threads, TileStages<Scheme>::bytes, stream},
             masked_linear_tiles_kernel<Scheme, product>, arguments);
  if constexpr (product != Product::grad_weight && std::is_same_v<Scheme, WideScheme<Scheme::rows>>) {
    if (error != cudaSuccess || chunk == 0) return error;
    const int64_t adding = rows * blocks_of(columns, kAddColumns);
    if (adding > INT32_MAX) return cudaErrorInvalidConfiguration;
    return launch({"masked_linear_add", dim3(static_cast<unsigned>(adding)), kAddThreads, 0, stream},
                  masked_linear_add_kernel<Scheme, product>, arguments);
  }
  return error;
}

template <typename Scheme>
cudaError_t launch_tiles(Product product, const MaskedLinear& m, cudaStream_t stream) {
  switch (product) {
    case Product::y: return launch_tiles<Scheme, Product::y>(m, stream);
    case Product::grad_input: return launch_tiles<Scheme, Product::grad_input>(m, stream);
    case Product::grad_weight: return launch_tiles<Scheme, Product::grad_weight>(m, stream);
  }
  return cudaErrorInvalidValue;
}

// By family of kernels, a file each.
cudaError_t launch_exact_tiles(Product product, const MaskedLinearTiling& tiling, const MaskedLinear& m, void* scratch,
                               cudaStream_t stream);
cudaError_t launch_16bit_tiles(Product product, int tile, const MaskedLinear& m, cudaStream_t stream);
cudaError_t launch_tf32_tiles(Product product, int tile, const MaskedLinear& m, cudaStream_t stream);

}  // namespace ar_fast::cuda
