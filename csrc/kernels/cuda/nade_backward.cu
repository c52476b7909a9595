// NADE backward: gradients of weights and biases, of x and of activation_scale, from the parameters' gradient.
//
// With delta_p = f'(s a_p) s dh_p and dh_p = grad_parameters out_weight at position p, the gradient that reaches the
// state after position p is the sum of delta over the later positions. Positions are split into tiles, and tiles are
// grouped into segments:
//
//   nade_states      the states before each tile, recomputed forward (inputs are never subtracted again)
//   nade_local       per tile: grad_out_weight, the sum of delta over the tile, and the tile's own part of
//                    grad_in_weight
//   nade_suffix      sums of delta over all later tiles
//   nade_far         the part of grad_in_weight that comes from later tiles
//   nade_inputs      grad_x and grad_activation_scale, if wanted
//
// Segments are taken from the last to the first and share scratch: they have at least sqrt(tiles) tiles, more if 256
// MiB permit. A block owns a tile and a strip of hidden units for all rows of the batch, so weight gradients are sums
// in registers in the order of the rows: there are no atomics, and every run gives the same bits. In the plain case a
// tile is 16 positions, both weights' columns and both gradients are in registers (one thread per unit), and each
// activation is computed once. As in the forward, this takes one ex2 and one rcp per activation, so 8 activations per
// clock and SM. A state and a sum of delta per (row, tile, unit) are written once and read once or twice, 20 bytes for
// 16 activations. Otherwise a tile is one position.
#include "nade_backward_general.h"
#include "nade_cuda.h"

namespace ar_fast::cuda {
namespace {

constexpr int kTile = 16;
constexpr int kThreads = 128;
constexpr int kRows = kThreads / kTile;  // rows whose inputs are in shared memory

// What a position of a tile needs from each row; zero past the end, which adds nothing.
template <typename T>
__device__ __forceinline__ T tile_value(const T* values, int row, int batch, int variables, int variable) {
  return row < batch && variable >= 0 ? values[static_cast<int64_t>(row) * variables + variable] : T(0);
}

// Block x = tile of the segment, block y = strip of kThreads units.
// near_in [positions of the segment, H]: the share of grad_in_weight from within the tile.
template <typename S>
__global__ void __launch_bounds__(kThreads, sizeof(Compute<S>) == 8 ? 2 : 4)
    nade_local_kernel(NadeArguments<S> arguments, NadeTiles tiles, const Compute<S>* __restrict__ grad,
                      const Compute<S>* __restrict__ states, Compute<S>* __restrict__ sums,
                      Compute<S>* __restrict__ near_in, S* __restrict__ grad_out_weight) {
  using T = Compute<S>;
  AR_FAST_SHARED(T, inputs, [kRows][kTile]);
  AR_FAST_SHARED(T, grads, [kRows][kTile]);
  const int t = static_cast<int>(threadIdx.x), unit = static_cast<int>(blockIdx.y) * kThreads + t;
  const int hidden = arguments.hidden, batch = arguments.batch,
            first = tiles.start + static_cast<int>(blockIdx.x) * kTile;
  const int count = min(kTile, tiles.stop - first);
  const bool has_unit = unit < hidden, scaled = arguments.activation_scale != nullptr;
  const int loaded_variable = t % kTile < count ? arguments.variable_at(first + t % kTile) : -1;

  T in[kTile], out[kTile], grad_in[kTile], grad_out[kTile];
#pragma unroll
  for (int p = 0; p < kTile; ++p) {
    in[p] = out[p] = grad_in[p] = grad_out[p] = T(0);
    if (p < count && has_unit) {
      const int64_t at = static_cast<int64_t>(arguments.variable_at(first + p)) * hidden + unit;
      in[p] = to_compute(arguments.in_weight[at]);
      out[p] = to_compute(arguments.out_weight[at]);
    }
  }
  for (int first_row = 0; first_row < batch; first_row += kRows) {
    __syncthreads();
    inputs[t / kTile][t % kTile] =
        tile_value(arguments.x, first_row + t / kTile, batch, arguments.variables, loaded_variable);
    grads[t / kTile][t % kTile] = tile_value(grad, first_row + t / kTile, batch, arguments.variables, loaded_variable);
    __syncthreads();
    const int rows = min(kRows, batch - first_row);
    for (int r = 0; r < rows; ++r) {
      const int64_t at = (static_cast<int64_t>(blockIdx.x) * batch + first_row + r) * hidden + unit;
      T a[1] = {has_unit ? states[at] : T(0)}, h[1] = {T(0)}, delta[kTile];
      bool changed = true;
#pragma unroll
      for (int p = 0; p < kTile; ++p) {
        const T scale = scaled && p < count ? arguments.activation_scale[arguments.variable_at(first + p)] : T(1);
        if (changed || scaled) activate(arguments.activation, scale, a, h);
        const T x = inputs[r][p], g = grads[r][p];
        grad_out[p] = fma(g, h[0], grad_out[p]);
        delta[p] = g * out[p] * derivative(arguments.activation, h[0]) * scale;
        changed = x != T(0);
        if (changed) a[0] = fma(x, in[p], a[0]);
      }
      T sum = T(0);
#pragma unroll
      for (int p = kTile - 1; p >= 0; --p) {
        grad_in[p] = fma(inputs[r][p], sum, grad_in[p]);
        sum += delta[p];
      }
      if (has_unit) sums[at] = sum;
    }
  }
  if (!has_unit) return;
#pragma unroll
  for (int p = 0; p < kTile; ++p) {
    if (p >= count) continue;
    near_in[static_cast<int64_t>(first + p - tiles.start) * hidden + unit] = grad_in[p];
    from_compute(grad_out_weight[static_cast<int64_t>(arguments.variable_at(first + p)) * hidden + unit], grad_out[p]);
  }
}

// sums [tiles, B, H] of delta after each tile. Block x = tile, block y = strip of kThreads units.
template <typename S>
__global__ void __launch_bounds__(kThreads, sizeof(Compute<S>) == 8 ? 2 : 4)
    nade_far_kernel(NadeArguments<S> arguments, NadeTiles tiles, const Compute<S>* __restrict__ sums,
                    const Compute<S>* __restrict__ near_in, S* __restrict__ grad_in_weight) {
  using T = Compute<S>;
  AR_FAST_SHARED(T, inputs, [kRows][kTile]);
  const int t = static_cast<int>(threadIdx.x), unit = static_cast<int>(blockIdx.y) * kThreads + t;
  const int hidden = arguments.hidden, batch = arguments.batch,
            first = tiles.start + static_cast<int>(blockIdx.x) * kTile;
  const int count = min(kTile, tiles.stop - first);
  const bool has_unit = unit < hidden;
  const int loaded_variable = t % kTile < count ? arguments.variable_at(first + t % kTile) : -1;
  T grad_in[kTile];
#pragma unroll
  for (int p = 0; p < kTile; ++p) {
    grad_in[p] = p < count && has_unit ? near_in[static_cast<int64_t>(first + p - tiles.start) * hidden + unit] : T(0);
  }
  for (int first_row = 0; first_row < batch; first_row += kRows) {
    __syncthreads();
    inputs[t / kTile][t % kTile] =
        tile_value(arguments.x, first_row + t / kTile, batch, arguments.variables, loaded_variable);
    __syncthreads();
    const int rows = has_unit ? min(kRows, batch - first_row) : 0;
    for (int r = 0; r < rows; ++r) {
      const T sum = sums[(static_cast<int64_t>(blockIdx.x) * batch + first_row + r) * hidden + unit];
#pragma unroll
      for (int p = 0; p < kTile; ++p) grad_in[p] = fma(inputs[r][p], sum, grad_in[p]);
    }
  }
#pragma unroll
  for (int p = 0; p < kTile; ++p) {
    if (p >= count || !has_unit) continue;
    from_compute(grad_in_weight[static_cast<int64_t>(arguments.variable_at(first + p)) * hidden + unit], grad_in[p]);
  }
}

// Replaces each tile's sum of delta by the sum over all later positions; carry [B, H] is the sum after the segment on
// entry, and before it on return.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    nade_suffix_kernel(int64_t states, int tiles, T* __restrict__ sums, T* __restrict__ carry, bool last_segment) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= states) return;
  T later = last_segment ? T(0) : carry[i];
  for (int tile = tiles - 1; tile >= 0; --tile) {
    const T own = sums[tile * states + i];
    sums[tile * states + i] = later;
    later += own;
  }
  carry[i] = later;
}

// grad_in_bias [H] from the rows' sums [B, H], added in double, in order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    nade_bias_kernel(int batch, int64_t hidden, const T* __restrict__ carry, T* __restrict__ grad_in_bias) {
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= hidden) return;
  double sum = 0;
  for (int row = 0; row < batch; ++row) sum += static_cast<double>(carry[row * hidden + unit]);
  grad_in_bias[unit] = static_cast<T>(sum);
}

// How the backward is split.
struct BackwardPlan {
  int tile, tiles_per_segment, segments;
  int64_t states;  // B H

  static BackwardPlan of(const NadeModel& model, const NadeInput& input) {
    BackwardPlan plan;
    plan.tile = is_plain(model, input) ? kTile : 1;
    plan.states = input.batch * model.hidden;
    const int64_t tiles = ceil_divide(model.variables, plan.tile);
    int64_t root = 1;
    while (root * root < tiles) ++root;
    const int64_t real = model.storage == ScalarType::float64 ? 8 : 4;
    const int64_t fitting = kScratchBudget / std::max<int64_t>(1, 2 * plan.states * real);
    plan.tiles_per_segment = static_cast<int>(std::min(tiles, std::max(root, fitting)));
    plan.segments = static_cast<int>(ceil_divide(tiles, plan.tiles_per_segment));
    return plan;
  }
};

template <typename T>
struct BackwardScratch {
  T *checkpoints, *states, *sums, *carry, *near_in;
  int64_t bytes;

  BackwardScratch(const NadeModel& model, const BackwardPlan& plan, void* base) {
    Scratch scratch(base);
    checkpoints = scratch.take<T>(plan.segments > 1 ? plan.segments * plan.states : 0);
    states = scratch.take<T>(plan.tiles_per_segment * plan.states);
    sums = scratch.take<T>(plan.tiles_per_segment * plan.states);
    carry = scratch.take<T>(plan.states);
    near_in =
        scratch.take<T>(plan.tile > 1 ? static_cast<int64_t>(plan.tiles_per_segment) * plan.tile * model.hidden : 0);
    bytes = scratch.bytes();
  }
};

template <typename S>
cudaError_t backward_weights(const NadeArguments<S>& arguments, const NadeBackward& output, const NadeTiles& tiles,
                             const BackwardScratch<Compute<S>>& scratch, bool last_segment, cudaStream_t stream) {
  if (arguments.hidden == 0) return cudaSuccess;  // the gradients are empty, and the grids would be too
  using T = Compute<S>;
  const T* grad = static_cast<const T*>(output.grad_parameters);
  const int64_t states = static_cast<int64_t>(arguments.batch) * arguments.hidden;
  const bool plain = tiles.tile == kTile;
  const dim3 grid(static_cast<unsigned>(tiles.count()), static_cast<unsigned>(ceil_divide(arguments.hidden, kThreads)));
  cudaError_t error = plain ? launch({"nade_local", grid, kThreads, 0, stream}, nade_local_kernel<S>, arguments, tiles,
                                     grad, static_cast<const T*>(scratch.states), scratch.sums, scratch.near_in,
                                     static_cast<S*>(output.grad_out_weight))
                            : nade_backward_out_rows<S>(arguments, tiles, grad, scratch.states, scratch.sums,
                                                        static_cast<S*>(output.grad_out_weight), stream);
  if (error != cudaSuccess) return error;
  if (states > 0) {
    error = launch({"nade_suffix", static_cast<unsigned>(ceil_divide(states, kThreads)), kThreads, 0, stream},
                   nade_suffix_kernel<T>, states, tiles.count(), scratch.sums, scratch.carry, last_segment);
    if (error != cudaSuccess) return error;
  }
  return plain ? launch({"nade_far", grid, kThreads, 0, stream}, nade_far_kernel<S>, arguments, tiles,
                        static_cast<const T*>(scratch.sums), static_cast<const T*>(scratch.near_in),
                        static_cast<S*>(output.grad_in_weight))
               : nade_backward_in_rows<S>(arguments, tiles, scratch.sums, static_cast<S*>(output.grad_in_weight),
                                          stream);
}

template <typename S>
cudaError_t backward_segment(const NadeArguments<S>& arguments, const NadeBackward& output, const NadeTiles& tiles,
                             const BackwardScratch<Compute<S>>& scratch, bool last_segment, cudaStream_t stream) {
  using T = Compute<S>;
  const T* grad = static_cast<const T*>(output.grad_parameters);
  const cudaError_t error = backward_weights<S>(arguments, output, tiles, scratch, last_segment, stream);
  if (error != cudaSuccess) return error;
  if (arguments.batch == 0 || (output.grad_x == nullptr && output.grad_activation_scale == nullptr)) return cudaSuccess;
  return nade_backward_inputs<S>(arguments, tiles, grad, scratch.states, scratch.sums, static_cast<T*>(output.grad_x),
                                 static_cast<T*>(output.grad_activation_scale), stream);
}

template <typename S>
cudaError_t backward(const NadeModel& model, const NadeInput& input, const NadeBackward& output, void* memory,
                     cudaStream_t stream) {
  using T = Compute<S>;
  const BackwardPlan plan = BackwardPlan::of(model, input);
  const BackwardScratch<T> scratch(model, plan, memory);
  const NadeArguments<S> arguments(model, input);
  const int segment = plan.tiles_per_segment * plan.tile, variables = arguments.variables;
  cudaError_t error = cudaSuccess;
  if (plan.segments > 1) {
    error = nade_states<S>(arguments, {0, variables, segment}, arguments.in_bias, arguments.in_bias_stride,
                           scratch.checkpoints, stream);
    if (error != cudaSuccess) return error;
  }
  for (int s = plan.segments - 1; s >= 0; --s) {
    const NadeTiles tiles = {s * segment, std::min(variables, (s + 1) * segment), plan.tile};
    error = plan.segments > 1
                ? nade_states<S>(arguments, tiles, scratch.checkpoints + s * plan.states, arguments.hidden,
                                 scratch.states, stream)
                : nade_states<S>(arguments, tiles, arguments.in_bias, arguments.in_bias_stride, scratch.states, stream);
    if (error != cudaSuccess) return error;
    error = backward_segment<S>(arguments, output, tiles, scratch, s == plan.segments - 1, stream);
    if (error != cudaSuccess) return error;
  }
  if (model.in_bias_stride != 0) {  // each row has its own bias, whose gradient is the row's sum
    if (plan.states == 0) return cudaSuccess;
    return launch({"nade_bias", static_cast<unsigned>(ceil_divide(plan.states, kThreads)), kThreads, 0, stream},
                  nade_bias_kernel<T>, 1, plan.states, static_cast<const T*>(scratch.carry),
                  static_cast<T*>(output.grad_in_bias));
  }
  if (model.hidden == 0) return cudaSuccess;
  return launch({"nade_bias", static_cast<unsigned>(ceil_divide(model.hidden, kThreads)), kThreads, 0, stream},
                nade_bias_kernel<T>, arguments.batch, arguments.hidden, static_cast<const T*>(scratch.carry),
                static_cast<T*>(output.grad_in_bias));
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

NadeBackwardCut nade_backward_cuda_cut(const NadeModel& model, const NadeInput& input) {
  const auto plan = cuda::BackwardPlan::of(model, input);
  return {plan.tile, cuda::ceil_divide(model.variables, plan.tile), plan.segments,
          model.storage == ScalarType::float64 ? cuda::BackwardScratch<double>(model, plan, nullptr).bytes
                                               : cuda::BackwardScratch<float>(model, plan, nullptr).bytes};
}

cudaError_t nade_backward_cuda(const NadeModel& model, const NadeInput& input, const NadeBackward& output,
                               void* scratch, cudaStream_t stream) {
  return cuda::dispatch_storage(model.storage, [&](auto storage) {
    return cuda::backward<decltype(storage)>(model, input, output, scratch, stream);
  });
}

}  // namespace ar_fast
