// NADE backward for any number of weight rows per variable: one thread owns one hidden unit of one position for all
// rows of the batch. Rows of weights are taken 8 at a time, in registers; the activation is computed once for each 8
// rows of out_weight. Bound by reading states and sums of delta: 4 bytes each per (row, position, unit) and 8 weight
// rows.
#include "nade_backward_general.h"

namespace ar_fast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWeightRows = 8;

// Block x = position of the segment, block y = strip of kThreads units.
template <typename S>
__global__ void __launch_bounds__(kThreads, sizeof(Compute<S>) == 8 ? 2 : 4)
    nade_out_rows_kernel(NadeArguments<S> arguments, int start, const Compute<S>* __restrict__ grad,
                         const Compute<S>* __restrict__ states, Compute<S>* __restrict__ sums,
                         S* __restrict__ grad_out_weight) {
  using T = Compute<S>;
  const int unit = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x), hidden = arguments.hidden;
  if (unit >= hidden) return;
  const int variable = arguments.variable_at(start + static_cast<int>(blockIdx.x)), batch = arguments.batch;
  const int64_t begin = arguments.first_out_row(variable), end = arguments.first_out_row(variable + 1);
  const T scale = arguments.scale(variable);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * batch * hidden + unit;
  if (begin == end) {  // a variable without parameters
    for (int row = 0; row < batch; ++row) sums[at + static_cast<int64_t>(row) * hidden] = T(0);
  }
  for (int64_t first = begin; first < end; first += kWeightRows) {
    T weight[kWeightRows], grad_weight[kWeightRows];
#pragma unroll
    for (int k = 0; k < kWeightRows; ++k) {
      weight[k] = first + k < end ? to_compute(arguments.out_weight[(first + k) * hidden + unit]) : T(0);
      grad_weight[k] = T(0);
    }
    for (int row = 0; row < batch; ++row) {
      const T a[1] = {states[at + static_cast<int64_t>(row) * hidden]};
      T h[1];
      activate(arguments.activation, scale, a, h);
      T grad_h = T(0);
#pragma unroll
      for (int k = 0; k < kWeightRows; ++k) {
        const T g = first + k < end ? grad[row * arguments.out_rows + first + k] : T(0);
        grad_weight[k] = fma(g, h[0], grad_weight[k]);
        grad_h = fma(g, weight[k], grad_h);
      }
      const T delta = grad_h * derivative(arguments.activation, h[0]) * scale;
      T& sum = sums[at + static_cast<int64_t>(row) * hidden];
      sum = first == begin ? delta : sum + delta;
    }
#pragma unroll
    for (int k = 0; k < kWeightRows; ++k) {
      if (first + k < end) from_compute(grad_out_weight[(first + k) * hidden + unit], grad_weight[k]);
    }
  }
}

// Block x = position of the segment, block y = strip of kThreads units.
template <typename S>
__global__ void __launch_bounds__(kThreads, sizeof(Compute<S>) == 8 ? 2 : 4)
    nade_in_rows_kernel(NadeArguments<S> arguments, int start, const Compute<S>* __restrict__ sums,
                        S* __restrict__ grad_in_weight) {
  using T = Compute<S>;
  const int unit = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x), hidden = arguments.hidden;
  if (unit >= hidden) return;
  const int variable = arguments.variable_at(start + static_cast<int>(blockIdx.x)), batch = arguments.batch;
  const int64_t begin = arguments.first_in_row(variable), end = arguments.first_in_row(variable + 1);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * batch * hidden + unit;
  for (int64_t first = begin; first < end; first += kWeightRows) {
    T grad_weight[kWeightRows];
#pragma unroll
    for (int k = 0; k < kWeightRows; ++k) grad_weight[k] = T(0);
    for (int row = 0; row < batch; ++row) {
      const auto [added_row, x] = arguments.added(row, variable);
      const int64_t added = added_row - first;
      if (added < 0 || added >= kWeightRows) continue;
      const T sum = sums[at + static_cast<int64_t>(row) * hidden];
#pragma unroll
      for (int k = 0; k < kWeightRows; ++k) {
        if (added == k) grad_weight[k] = fma(x, sum, grad_weight[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < kWeightRows; ++k) {
      if (first + k < end) from_compute(grad_in_weight[(first + k) * hidden + unit], grad_weight[k]);
    }
  }
}

constexpr int kInputWarps = 4;

// What a position of a row needs that does not depend on the unit.
template <typename T>
struct InputStep {
  Added<T> added;
  int64_t out_begin, out_end;
  T scale;
};

// One warp per (row, tile): lanes over hidden units, one sum per position in registers. Reads both weights' tiles once
// per row.
template <typename S, int tile>
__global__ void __launch_bounds__(kInputWarps* kWarpSize, sizeof(Compute<S>) == 8 ? 2 : 4)
    nade_inputs_kernel(NadeArguments<S> arguments, NadeTiles tiles, const Compute<S>* __restrict__ grad,
                       const Compute<S>* __restrict__ states, const Compute<S>* __restrict__ sums,
                       Compute<S>* __restrict__ grad_x, Compute<S>* __restrict__ grad_activation_scale) {
  using T = Compute<S>;
  const int lane = lane_id(), hidden = arguments.hidden, batch = arguments.batch;
  const int groups = (batch + kInputWarps - 1) / kInputWarps, index = static_cast<int>(blockIdx.x) / groups;
  const int row = static_cast<int>(blockIdx.x) % groups * kInputWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  if (row >= batch) return;
  const int first = tiles.start + index * tile, count = min(tile, tiles.stop - first);
  AR_FAST_SHARED(InputStep<T>, all_steps, [kInputWarps * tile]);
  InputStep<T>* const steps = all_steps + threadIdx.x / kWarpSize * tile;
  for (int p = lane; p < count; p += kWarpSize) {
    const int variable = arguments.variable_at(first + p);
    steps[p] = {arguments.added(row, variable), arguments.first_out_row(variable),
                arguments.first_out_row(variable + 1), arguments.scale(variable)};
  }
  __syncwarp();
  T x_sums[tile], scale_sums[tile];
#pragma unroll
  for (int p = 0; p < tile; ++p) x_sums[p] = scale_sums[p] = T(0);
  for (int unit = lane; unit < hidden; unit += kWarpSize) {
    const int64_t at = (static_cast<int64_t>(index) * batch + row) * hidden + unit;
    T a[1] = {states[at]}, in[tile], delta[tile];
#pragma unroll
    for (int p = 0; p < tile; ++p) {
      in[p] = delta[p] = T(0);
      if (p >= count) continue;
      const InputStep<T> step = steps[p];
      T h[1], grad_h = T(0);
      activate(arguments.activation, step.scale, a, h);
      for (int64_t out = step.out_begin; out < step.out_end; ++out) {
        grad_h =
            fma(grad[row * arguments.out_rows + out], to_compute(arguments.out_weight[out * hidden + unit]), grad_h);
      }
      grad_h *= derivative(arguments.activation, h[0]);
      scale_sums[p] = fma(grad_h, a[0], scale_sums[p]);
      delta[p] = grad_h * step.scale;
      in[p] = to_compute(arguments.in_weight[step.added.row * hidden + unit]);
      if (step.added.factor != T(0)) a[0] = fma(step.added.factor, in[p], a[0]);
    }
    T later = sums[at];
#pragma unroll
    for (int p = tile - 1; p >= 0; --p) {
      x_sums[p] = fma(in[p], later, x_sums[p]);
      later += delta[p];
    }
  }
#pragma unroll
  for (int p = 0; p < tile; ++p) {
    const T x_sum = warp_sum(x_sums[p]), scale_sum = warp_sum(scale_sums[p]);
    if (p >= count || lane != 0) continue;
    const int variable = arguments.variable_at(first + p);
    const int64_t at = static_cast<int64_t>(row) * arguments.variables + variable;
    if (grad_x != nullptr) grad_x[at] = arguments.gathers(variable) ? T(0) : x_sum;
    if (grad_activation_scale != nullptr) grad_activation_scale[at] = scale_sum;
  }
}

template <typename S>
dim3 grid_of(const NadeArguments<S>& arguments, const NadeTiles& tiles) {
  return dim3(static_cast<unsigned>(tiles.count()), static_cast<unsigned>(ceil_divide(arguments.hidden, kThreads)));
}

}  // namespace

template <typename S>
cudaError_t nade_backward_out_rows(const NadeArguments<S>& arguments, const NadeTiles& tiles, const Compute<S>* grad,
                                   const Compute<S>* states, Compute<S>* sums, S* grad_out_weight,
                                   cudaStream_t stream) {
  return launch({"nade_out_rows", grid_of(arguments, tiles), kThreads, 0, stream}, nade_out_rows_kernel<S>, arguments,
                tiles.start, grad, states, sums, grad_out_weight);
}

template <typename S>
cudaError_t nade_backward_in_rows(const NadeArguments<S>& arguments, const NadeTiles& tiles, const Compute<S>* sums,
                                  S* grad_in_weight, cudaStream_t stream) {
  return launch({"nade_in_rows", grid_of(arguments, tiles), kThreads, 0, stream}, nade_in_rows_kernel<S>, arguments,
                tiles.start, sums, grad_in_weight);
}

template <typename S>
cudaError_t nade_backward_inputs(const NadeArguments<S>& arguments, const NadeTiles& tiles, const Compute<S>* grad,
                                 const Compute<S>* states, const Compute<S>* sums, Compute<S>* grad_x,
                                 Compute<S>* grad_activation_scale, cudaStream_t stream) {
  const int64_t blocks = tiles.count() * ceil_divide(arguments.batch, kInputWarps);
  return launch({"nade_inputs", static_cast<unsigned>(blocks), kInputWarps * kWarpSize, 0, stream},
                tiles.tile == 1 ? nade_inputs_kernel<S, 1> : nade_inputs_kernel<S, 16>, arguments, tiles, grad, states,
                sums, grad_x, grad_activation_scale);
}

#define AR_FAST_INSTANTIATE(S)                                                                                    \
  template cudaError_t nade_backward_out_rows<S>(const NadeArguments<S>&, const NadeTiles&, const Compute<S>*,    \
                                                 const Compute<S>*, Compute<S>*, S*, cudaStream_t);               \
  template cudaError_t nade_backward_in_rows<S>(const NadeArguments<S>&, const NadeTiles&, const Compute<S>*, S*, \
                                                cudaStream_t);                                                    \
  template cudaError_t nade_backward_inputs<S>(const NadeArguments<S>&, const NadeTiles&, const Compute<S>*,      \
                                               const Compute<S>*, const Compute<S>*, Compute<S>*, Compute<S>*,    \
                                               cudaStream_t);
AR_FAST_INSTANTIATE(float)
AR_FAST_INSTANTIATE(float16)
AR_FAST_INSTANTIATE(bfloat16)
AR_FAST_INSTANTIATE(double)
#undef AR_FAST_INSTANTIATE

}  // namespace ar_fast::cuda
