// Masked linear maps of a few rows: the weight's bytes are the cost, so each unmasked weight is read once for all of
// them, 128 bits at a time.
#include <algorithm>

#include "activation.h"
#include "masked_linear_device.h"

namespace ar_fast::cuda {
namespace {

constexpr int kWarps = 8;
// Rows of the batch that one pass over the weight serves.
constexpr int kRows = 4;
constexpr int kAhead = 4;  // vectors of a weight row under way, and as many of a row of the batch

template <typename S>
struct RowsArguments {
  DeviceMask mask;
  Operand<S> weight;
  const S* input;                  // y: input; dX: grad_output
  int64_t input_stride;
  const S* bias;
  Activation activation;
  S* output;
  int batch;
  bool vectors;                    // rows of the weight and of the input can be read 128 bits at a time, unsorted
};

// One warp per output feature; lanes stride over the columns that it sees. Where the mask is nested and rows can be
// read as they lie, the mask is asked once, for the vectors that are whole, and only the last one, in part, is read
// weight by weight. A lane adds its columns in the same order either way.
template <typename S>
__global__ void __launch_bounds__(kWarps * kWarpSize, 2) masked_linear_rows_kernel(RowsArguments<S> arguments) {
  using T = Compute<S>;
  constexpr int size = Vector<S>::size, width = kWarpSize * size;
  const DeviceMask& mask = arguments.mask;
  const int lane = lane_id(), r = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  const int first = static_cast<int>(blockIdx.y) * kRows, rows = min(kRows, arguments.batch - first);
  if (r >= mask.out_features) return;  // a whole warp
  const int seen = mask.columns_seen(r);
  T sums[kRows] = {};
  const int whole = arguments.vectors ? seen / size * size : 0;
  const S* const weight_row = arguments.weight.row_data(r);
  for (int base = lane * size; base < whole; base += kAhead * width) {
    const auto column = [&](int k) { return base + k * width < whole ? base + k * width : base; };
    Vector<S> weight[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) weight[k] = load_vector(weight_row + column(k));
#pragma unroll
    for (int b = 0; b < kRows; ++b) {
      if (b >= rows) break;
      const S* const input = arguments.input + (first + b) * arguments.input_stride;
      Vector<S> x[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) x[k] = load_vector(input + column(k));
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
#pragma unroll
        for (int i = 0; i < size; ++i) {
          const T sum = fma(to_compute(weight[k].values[i]), to_compute(x[k].values[i]), sums[b]);
          sums[b] = base + k * width < whole ? sum : sums[b];
        }
      }
    }
  }
  // Of a row with whole vectors, one lane has what is left.
  const int rest = whole == 0 ? lane * size : whole / size % kWarpSize == lane ? whole : seen;
  for (int c = rest; c < seen; c += width) {
    if (!mask.tile_used(r, c)) continue;
    const Vector<S> weight = arguments.weight.template fetch<true>(mask, r, c);
#pragma unroll
    for (int i = 0; i < size; ++i) {
      if (c + i >= mask.in_features || !mask.allows(r, c + i)) continue;
      const S* const input = arguments.input + first * arguments.input_stride + mask.column(c + i);
#pragma unroll
      for (int b = 0; b < kRows; ++b) {
        if (b < rows) {
          sums[b] = fma(to_compute(weight.values[i]), to_compute(input[b * arguments.input_stride]), sums[b]);
        }
      }
    }
  }
  const int feature = mask.row(r);
#pragma unroll
  for (int b = 0; b < kRows; ++b) {
    T sum = warp_sum(sums[b]);
    if (b < rows && lane == 0) {
      if (arguments.bias != nullptr) sum += to_compute(arguments.bias[feature]);
      sum = activate(arguments.activation, sum);
      from_compute(arguments.output[static_cast<int64_t>(first + b) * mask.out_features + feature], sum);
    }
  }
}

// A masked weight is a zero, whose product with what is not finite is NaN. So a gradient that is NaN is computed again,
// from the weights that the mask allows.
template <typename S>
__device__ __forceinline__ Compute<S> allowed_sum(const RowsArguments<S>& arguments, int row, int column) {
  const DeviceMask& mask = arguments.mask;
  Compute<S> sum = 0;
#pragma unroll 1
  for (int r = 0; r < mask.out_features; ++r) {
    if (!mask.allows(r, column)) continue;
    const S weight = arguments.weight.row_data(r)[mask.column(column)];
    sum = fma(to_compute(arguments.input[row * arguments.input_stride + mask.row(r)]), to_compute(weight), sum);
  }
  return sum;
}

// A block owns the columns of 32 vectors; its warps take the rows in turn and are added up in their order.
template <typename S>
__global__ void __launch_bounds__(kWarps * kWarpSize) masked_linear_grad_input_rows_kernel(RowsArguments<S> arguments) {
  using T = Compute<S>;
  constexpr int size = Vector<S>::size, width = kWarpSize * size;
  AR_FAST_SHARED(T, partial, [kWarps][width]);
  const DeviceMask& mask = arguments.mask;
  const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int block_column = static_cast<int>(blockIdx.x) * width, c = block_column + lane * size;
  const int first = static_cast<int>(blockIdx.y) * kRows, rows = min(kRows, arguments.batch - first);
  T sums[kRows][size] = {};
  for (int r = mask.first_row(block_column) + warp; r < mask.out_features; r += kWarps) {
    if (c >= mask.in_features || !mask.tile_used(r, c)) continue;
    const Vector<S> weight = arguments.weight.template fetch<true>(mask, r, c);
    const int feature = mask.row(r);
#pragma unroll
    for (int b = 0; b < kRows; ++b) {
      if (b < rows) {
        const T grad = to_compute(arguments.input[(first + b) * arguments.input_stride + feature]);
#pragma unroll
        for (int i = 0; i < size; ++i) sums[b][i] = fma(grad, to_compute(weight.values[i]), sums[b][i]);
      }
    }
  }
#pragma unroll
  for (int b = 0; b < kRows; ++b) {
    if (b >= rows) break;  // the same in the whole block
#pragma unroll
    for (int i = 0; i < size; ++i) partial[warp][lane * size + i] = sums[b][i];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < width; i += kWarps * kWarpSize) {
      T sum = partial[0][i];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) sum += partial[w][i];
      if (block_column + i < mask.in_features) {
        if (sum != sum) sum = allowed_sum(arguments, first + b, block_column + i);
        const int64_t row = static_cast<int64_t>(first + b) * mask.in_features;
        from_compute(arguments.output[row + mask.column(block_column + i)], sum);
      }
    }
    __syncthreads();
  }
}

template <typename S>
RowsArguments<S> arguments_of(const MaskedLinear& m, bool backward) {
  const MaskPlan& plan = m.mask;
  const Operand<S> weight(m.weight, plan.in_features, plan.out_features, plan.in_features, plan.rows, plan.columns);
  const S* const input = static_cast<const S*>(backward ? m.grad_output : m.input);
  const int64_t input_stride = backward ? m.grad_output_stride : m.input_stride;
  return {DeviceMask(plan),
          weight,
          input,
          input_stride,
          static_cast<const S*>(m.bias),
          m.activation,
          static_cast<S*>(m.output),
          static_cast<int>(m.batch),
          plan.extents != nullptr && weight.aligned && vectors_fit(input, input_stride)};
}

// A launch for as many rows of the batch as a grid has blocks for, then one for the rest.
template <typename S>
cudaError_t launch_rows(const char* name, void (*kernel)(RowsArguments<S>), unsigned blocks_across, int64_t batch,
                        int64_t output_stride, RowsArguments<S> arguments, cudaStream_t stream) {
  for (int64_t left = batch; left > 0; left -= arguments.batch) {
    arguments.batch = static_cast<int>(std::min(left, kMostBlocksInY * kRows));
    const cudaError_t error = launch({name, dim3(blocks_across, blocks_of(arguments.batch, kRows)),
                                      kWarps * kWarpSize, 0, stream}, kernel, arguments);
    if (error != cudaSuccess) return error;
    arguments.input += arguments.batch * arguments.input_stride;
    arguments.output += arguments.batch * output_stride;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

cudaError_t masked_linear_rows_cuda(const MaskedLinear& m, cudaStream_t stream) {
  using namespace cuda;
  const int64_t features = m.mask.out_features;
  if (features == 0) return cudaSuccess;
  return dispatch_storage(m.storage, [&](auto type) {
    using S = decltype(type);
    return launch_rows("masked_linear_rows", masked_linear_rows_kernel<S>, blocks_of(features, kWarps), m.batch,
                       features, arguments_of<S>(m, false), stream);
  });
}

cudaError_t masked_linear_grad_input_rows_cuda(const MaskedLinear& m, cudaStream_t stream) {
  using namespace cuda;
  const int64_t features = m.mask.in_features;
  if (features == 0) return cudaSuccess;
  return dispatch_storage(m.storage, [&](auto type) {
    using S = decltype(type);
    return launch_rows("masked_linear_grad_input_rows", masked_linear_grad_input_rows_kernel<S>,
                       blocks_of(features, kWarpSize * Vector<S>::size), m.batch, features, arguments_of<S>(m, true),
                       stream);
  });
}

}  // namespace ar_fast
