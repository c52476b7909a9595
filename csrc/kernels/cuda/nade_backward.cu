// NADE backward: gradients of weights and biases, of x and of activation_scale, from the parameters' gradient.
//
// With delta_p = f'(s a_p) s dh_p and dh_p = grad_parameters out_weight at position p, the gradient that reaches the
// state after position p is the sum of delta over the later positions. Positions are split into tiles, and tiles are
// grouped into segments:
//
//   nade_states        the states before each tile, recomputed forward (inputs are never subtracted again)
//   nade_local         per tile: grad_out_weight, the sum of delta over the tile, and the tile's own part of
//                      grad_in_weight
//   nade_running_sums  sums of delta over all later tiles
//   nade_far           the part of grad_in_weight that comes from later tiles, and at last grad_in_bias (nade_bias if
//                      a tile is one position)
//   nade_inputs        grad_x and grad_activation_scale, if wanted
//
// Segments are taken from the last to the first and share scratch: they have at least sqrt(tiles) tiles, more if 256
// MiB permit. In the plain case a tile is 16 positions. A block owns a tile and a strip of hidden units; its warps
// share out the rows of the batch, and so do several blocks where there are few tiles and many rows. Weight gradients
// are sums in registers over a warp's rows in order, then over the warps, then over the blocks (nade_merge), each in
// order: there are no atomics, and every run gives the same bits. In nade_local a lane has one unit, with both weights'
// columns in shared memory and both gradients in registers; each activation is computed once, two rows at a time, so
// that their chains overlap. As in the forward, this takes one ex2 and one rcp per activation, so 8 activations per
// clock and SM. A state and a sum of delta per (row, tile, unit) are written once and read once or twice, 20 bytes for
// 16 activations. Otherwise a tile is one position.
#include "nade_backward_general.h"
#include "nade_cuda.h"

namespace ar_fast::cuda {
namespace {

constexpr int kTile = 16;
constexpr int kThreads = 128;
constexpr int kStaged = 8;  // rows whose inputs a warp has in shared memory
constexpr int kRound = 16;  // sums of a lane that the warps of a block add up at once
constexpr int kWarps = 4;   // of a block: they share out its rows

// The rows of a warp: a part of those of its block, which are the blockIdx.y-th of the batch.
struct Rows {
  int begin, end;

  __device__ __forceinline__ Rows(int batch, int rows_per_block) {
    const int first = static_cast<int>(blockIdx.y) * rows_per_block, last = min(first + rows_per_block, batch);
    const int each = rows_per_block / kWarps;  // an even number
    begin = first + static_cast<int>(threadIdx.x) / kWarpSize * each;
    end = min(begin + each, last);
  }
};

// The place of a block in a segment: a tile, and a strip of `width` units.
struct Place {
  int tile, strip, first, count;

  __device__ __forceinline__ Place(const NadeTiles& tiles, int hidden, int width) {
    const int strips = (hidden + width - 1) / width;
    tile = static_cast<int>(blockIdx.x) / strips;
    strip = static_cast<int>(blockIdx.x) % strips;
    first = tiles.start + tile * kTile;
    count = min(kTile, tiles.stop - first);
  }
};

// What the positions of a tile need from 8 rows, for one warp; zero past the end, which adds nothing. There is at least
// one row. Lane l has position l % 16 of the rows that are as odd as l / 16; `variable` is that of the position, -1 past
// the last.
template <typename T>
struct TileInputs {
  T values[kStaged / 2];

  __device__ __forceinline__ void load(const T* all, int first_row, int end, int variables, int variable) {
#pragma unroll
    for (int i = 0; i < kStaged / 2; ++i) {
      const int row = first_row + 2 * i + lane_id() / kTile;
      const T value = all[static_cast<int64_t>(min(row, end - 1)) * variables + max(variable, 0)];  // without a branch
      values[i] = row < end && variable >= 0 ? value : T(0);
    }
  }
  __device__ __forceinline__ void store(T (&shared)[kStaged][kTile]) const {
#pragma unroll
    for (int i = 0; i < kStaged / 2; ++i) shared[2 * i + lane_id() / kTile][lane_id() % kTile] = values[i];
  }
};

// Adds up kRound sums of each lane over the warps of the block, in their order, and calls done(k, sum) once for each:
// the warps share them out.
template <typename T, typename Done>
__device__ __forceinline__ void sum_over_warps(const T (&own)[kRound], T (&shared)[kWarps][kRound][kWarpSize],
                                               const Done& done) {
  const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kRound; ++k) shared[warp][k][lane] = own[k];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRound / kWarps; ++i) {
    const int k = warp * (kRound / kWarps) + i;
    T sum = shared[0][k][lane];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) sum += shared[w][k][lane];
    done(k, sum);
  }
}

// Where a block writes its part of a weight's gradient: straight to the gradient, or if the rows of the batch are
// split over `gridDim.y` blocks, to partial [gridDim.y, positions of the segment, H].
template <typename S>
struct WeightGradient {
  S* gradient;
  Compute<S>* partial;

  __device__ __forceinline__ int64_t partial_at(const NadeTiles& tiles, int position, int hidden, int unit) const {
    const int64_t positions = tiles.stop - tiles.start;
    return (blockIdx.y * positions + position - tiles.start) * hidden + unit;
  }
  __device__ __forceinline__ void write(const NadeArguments<S>& arguments, const NadeTiles& tiles, int position,
                                        int unit, Compute<S> value) const {
    const int hidden = arguments.hidden;
    if (gridDim.y > 1) {
      partial[partial_at(tiles, position, hidden, unit)] = value;
    } else {
      from_compute(gradient[static_cast<int64_t>(arguments.variable_at(position)) * hidden + unit], value);
    }
  }
};

// Both weights of a lane's unit at the positions of a tile that its warp brings in: every kWarps-th. Lane l knows the
// variable of position l, -1 past the last, whose weights are zero.
template <typename S>
struct Columns {
  using T = Compute<S>;
  static constexpr int count = kTile / kWarps;
  T in[count], out[count];

  __device__ __forceinline__ Columns(const NadeArguments<S>& arguments, int lane_variable, int unit) {
    const bool has_unit = unit < arguments.hidden;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int variable = __shfl_sync(kFullMask, lane_variable, position(i));
      const int64_t at = static_cast<int64_t>(max(variable, 0)) * arguments.hidden + (has_unit ? unit : 0);
      const S in_stored = arguments.in_weight[at], out_stored = arguments.out_weight[at];  // without a branch
      in[i] = variable >= 0 && has_unit ? to_compute(in_stored) : T(0);
      out[i] = variable >= 0 && has_unit ? to_compute(out_stored) : T(0);
    }
  }
  __device__ __forceinline__ void store(T (&all_in)[kTile][kWarpSize], T (&all_out)[kTile][kWarpSize]) const {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      all_in[position(i)][lane_id()] = in[i];
      all_out[position(i)][lane_id()] = out[i];
    }
  }
  static __device__ __forceinline__ int position(int i) {
    return static_cast<int>(threadIdx.x) / kWarpSize + i * kWarps;
  }
};

// Block x = (tile of the segment, strip of 32 units), block y = rows_per_block rows of the batch.
// near_in [gridDim.y, positions of the segment, H]: the share of grad_in_weight from within the tile.
// sigmoids: the activation is a sigmoid, and there is no activation_scale.
template <typename S, bool sigmoids>
__global__ void __launch_bounds__(kWarps* kWarpSize, sizeof(Compute<S>) == 8 ? 2 : 3)
    nade_local_kernel(NadeArguments<S> arguments, NadeTiles tiles, int rows_per_block,
                      const Compute<S>* __restrict__ grad, const Compute<S>* __restrict__ states,
                      Compute<S>* __restrict__ sums, Compute<S>* __restrict__ near_in,
                      WeightGradient<S> grad_out_weight) {
  using T = Compute<S>;
  constexpr int width = Vector<T>::size;
  AR_FAST_SHARED(T, all_inputs, [kWarps][kStaged][kTile]);
  AR_FAST_SHARED(T, all_grads, [kWarps][kStaged][kTile]);
  AR_FAST_SHARED(T, all_states, [kWarps][kStaged][kWarpSize]);
  AR_FAST_SHARED(T, all_sums, [kWarps][kRound][kWarpSize]);
  AR_FAST_SHARED(T, in, [kTile][kWarpSize]);
  AR_FAST_SHARED(T, out, [kTile][kWarpSize]);
  const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int hidden = arguments.hidden, batch = arguments.batch, variables = arguments.variables;
  const Place place(tiles, hidden, kWarpSize);
  const int unit = place.strip * kWarpSize + lane;
  const bool has_unit = unit < hidden, scaled = !sigmoids && arguments.activation_scale != nullptr;
  const int lane_variable = lane % kTile < place.count ? arguments.variable_at(place.first + lane % kTile) : -1;
  T(&inputs)[kStaged][kTile] = all_inputs[warp];
  T(&grads)[kStaged][kTile] = all_grads[warp];
  T(&states_before)[kStaged][kWarpSize] = all_states[warp];

  Columns<S>(arguments, lane_variable, unit).store(in, out);
  __syncthreads();
  T grad_in[kTile], grad_out[kTile];
#pragma unroll
  for (int p = 0; p < kTile; ++p) grad_in[p] = grad_out[p] = T(0);
  const Rows rows(batch, rows_per_block);
  for (int first_row = rows.begin; first_row < rows.end; first_row += kStaged) {
    const int64_t at = (static_cast<int64_t>(place.tile) * batch + first_row) * hidden + min(unit, hidden - 1);
    const int count = min(kStaged, rows.end - first_row);
    TileInputs<T> x, g;
    T before[kStaged];
    x.load(arguments.x, first_row, rows.end, variables, lane_variable);
    g.load(grad, first_row, rows.end, variables, lane_variable);
#pragma unroll
    for (int r = 0; r < kStaged; ++r) {
      before[r] = states[at + static_cast<int64_t>(min(r, count - 1)) * hidden];
    }
    __syncwarp();
    x.store(inputs);
    g.store(grads);
    uint32_t lane_ones = 0;  // lane i: where x is not zero, of rows 2 i in the low half and 2 i + 1 in the high one
#pragma unroll
    for (int i = 0; i < kStaged / 2; ++i) {
      const uint32_t ones = __ballot_sync(kFullMask, x.values[i] != T(0));
      if (lane == i) lane_ones = ones;
    }
#pragma unroll
    for (int r = 0; r < kStaged; ++r) states_before[r][lane] = before[r];
    __syncwarp();

    for (int r = 0; r < count; r += 2) {
      const uint32_t ones = __shfl_sync(kFullMask, lane_ones, r / 2), either = (ones | ones >> 16) & 0xFFFFu;
      T a[2] = {states_before[r][lane], states_before[r + 1][lane]}, h[2], delta[2][kTile];
      // every: both rows have an input that is not zero at every position but the last, whose input is not needed.
      const auto forward = [&](auto every) {
#pragma unroll
        for (int first = 0; first < kTile; first += width) {
          const Vector<T> x0 = load_shared_vector(&inputs[r][first]), x1 = load_shared_vector(&inputs[r + 1][first]);
          const Vector<T> g0 = load_shared_vector(&grads[r][first]), g1 = load_shared_vector(&grads[r + 1][first]);
#pragma unroll
          for (int i = 0; i < width; ++i) {
            const int p = first + i;
            const T scale =
                scaled && p < place.count ? arguments.activation_scale[arguments.variable_at(place.first + p)] : T(1);
            if (decltype(every)::value || p == 0 || (either >> (p > 0 ? p - 1 : 0) & 1u) != 0 || scaled) {
              if constexpr (sigmoids) {
                sigmoid(a, h);
              } else {
                activate(arguments.activation, scale, a, h);
              }
            }
            grad_out[p] = fma(g0.values[i], h[0], grad_out[p]);
            grad_out[p] = fma(g1.values[i], h[1], grad_out[p]);
            delta[0][p] = g0.values[i] * out[p][lane];
            delta[1][p] = g1.values[i] * out[p][lane];
            if constexpr (sigmoids) {
              delta[0][p] *= fma(-h[0], h[0], h[0]);
              delta[1][p] *= fma(-h[1], h[1], h[1]);
            } else {
              delta[0][p] *= derivative(arguments.activation, h[0]) * scale;
              delta[1][p] *= derivative(arguments.activation, h[1]) * scale;
            }
            if (decltype(every)::value || (ones & 1u << p) != 0) a[0] = fma(x0.values[i], in[p][lane], a[0]);
            if (decltype(every)::value || (ones & 0x10000u << p) != 0) a[1] = fma(x1.values[i], in[p][lane], a[1]);
          }
        }
      };
      // In float64 the library's functions leave no registers for the second copy of the code.
      if ((sigmoids || sizeof(T) == 4) && (ones & 0x7FFF7FFFu) == 0x7FFF7FFFu) {
        forward(std::true_type{});
      } else {
        forward(std::false_type{});
      }
      T later[2] = {T(0), T(0)};
#pragma unroll
      for (int first = kTile - width; first >= 0; first -= width) {
        const Vector<T> x0 = load_shared_vector(&inputs[r][first]), x1 = load_shared_vector(&inputs[r + 1][first]);
#pragma unroll
        for (int i = width - 1; i >= 0; --i) {
          const int p = first + i;
          grad_in[p] = fma(x0.values[i], later[0], grad_in[p]);
          grad_in[p] = fma(x1.values[i], later[1], grad_in[p]);
          later[0] += delta[0][p];
          later[1] += delta[1][p];
        }
      }
      if (has_unit) sums[at + static_cast<int64_t>(r) * hidden] = later[0];
      if (has_unit && r + 1 < count) sums[at + static_cast<int64_t>(r + 1) * hidden] = later[1];
    }
  }
  static_assert(kTile == kRound);
  sum_over_warps(grad_in, all_sums, [&](int p, T sum) {
    if (p < place.count && has_unit) near_in[grad_out_weight.partial_at(tiles, place.first + p, hidden, unit)] = sum;
  });
  sum_over_warps(grad_out, all_sums, [&](int p, T sum) {
    if (p < place.count && has_unit) grad_out_weight.write(arguments, tiles, place.first + p, unit, sum);
  });
}

constexpr int kBiasRows = 16;  // under way at once

// grad_in_bias [H], if it is one for all rows, from their sums of delta over all positions, carry [B, H].
template <typename T>
struct BiasGradient {
  int batch;
  int64_t hidden;
  const T* carry;
  T* gradient;  // null if not wanted

  __host__ __device__ __forceinline__ int blocks() const {
    return gradient != nullptr ? static_cast<int>((hidden + kWarpSize - 1) / kWarpSize) : 0;
  }
};

// The index-th block's 32 units, added in double: a warp adds a part of the rows in order, and then the warps' sums are
// added in order.
template <typename T>
__device__ __forceinline__ void add_biases(const BiasGradient<T>& bias, int index,
                                           double (&warp_sums)[kWarps][kWarpSize]) {
  const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t unit = static_cast<int64_t>(index) * kWarpSize + lane;
  const int each = (bias.batch + kWarps - 1) / kWarps, end = min((warp + 1) * each, bias.batch);
  double sum = 0;
  for (int first = warp * each; first < end; first += kBiasRows) {
    T values[kBiasRows];
#pragma unroll
    for (int k = 0; k < kBiasRows; ++k) {
      values[k] = first + k < end && unit < bias.hidden ? bias.carry[(first + k) * bias.hidden + unit] : T(0);
    }
#pragma unroll
    for (int k = 0; k < kBiasRows; ++k) sum += static_cast<double>(values[k]);
  }
  warp_sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || unit >= bias.hidden) return;
  for (int w = 1; w < kWarps; ++w) sum += warp_sums[w][lane];
  bias.gradient[unit] = static_cast<T>(sum);
}

template <typename T>
__global__ void __launch_bounds__(kWarps* kWarpSize) nade_bias_kernel(BiasGradient<T> bias) {
  AR_FAST_SHARED(double, warp_sums, [kWarps][kWarpSize]);
  add_biases(bias, static_cast<int>(blockIdx.x), warp_sums);
}

constexpr int kFarUnits = 4;  // of a lane: every 32nd
constexpr int kFarRows = 4;   // under way at once

// sums [tiles, B, H] of delta after each tile. Block x = (tile, strip of 128 units), block y = rows_per_block rows. The
// blocks past those of the last tile add up grad_in_bias, which saves a launch.
template <typename S>
__global__ void __launch_bounds__(kWarps* kWarpSize, sizeof(Compute<S>) == 8 ? 2 : 4)
    nade_far_kernel(NadeArguments<S> arguments, NadeTiles tiles, int rows_per_block,
                    const Compute<S>* __restrict__ sums, const Compute<S>* near_in,
                    WeightGradient<S> grad_in_weight, BiasGradient<Compute<S>> bias) {
  using T = Compute<S>;
  constexpr int width = Vector<T>::size;
  AR_FAST_SHARED(T, all_inputs, [kWarps][kStaged][kTile]);
  AR_FAST_SHARED(T, all_sums, [kWarps][kRound][kWarpSize]);
  AR_FAST_SHARED(double, bias_sums, [kWarps][kWarpSize]);
  const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int hidden = arguments.hidden, batch = arguments.batch;
  const Place place(tiles, hidden, kFarUnits * kWarpSize);
  if (place.first >= tiles.stop) {
    const int index = static_cast<int>(blockIdx.x + bias.blocks() - gridDim.x);
    if (blockIdx.y == 0) add_biases(bias, index, bias_sums);
    return;
  }
  const int first_unit = place.strip * kFarUnits * kWarpSize + lane;
  const int lane_variable = lane % kTile < place.count ? arguments.variable_at(place.first + lane % kTile) : -1;
  T(&inputs)[kStaged][kTile] = all_inputs[warp];
  T grad_in[kFarUnits][kTile];
#pragma unroll
  for (int u = 0; u < kFarUnits; ++u) {
#pragma unroll
    for (int p = 0; p < kTile; ++p) grad_in[u][p] = T(0);
  }
  const Rows rows(batch, rows_per_block);
  for (int first_row = rows.begin; first_row < rows.end; first_row += kStaged) {
    TileInputs<T> x;
    x.load(arguments.x, first_row, rows.end, arguments.variables, lane_variable);
    __syncwarp();
    x.store(inputs);
    __syncwarp();
    const int count = min(kStaged, rows.end - first_row);
    for (int r = 0; r < count; r += kFarRows) {
      T later[kFarRows][kFarUnits];  // past the end, of rows whose inputs are zero, and of units that are not stored
#pragma unroll
      for (int k = 0; k < kFarRows; ++k) {
        const int64_t row = static_cast<int64_t>(place.tile) * batch + first_row + min(r + k, count - 1);
#pragma unroll
        for (int u = 0; u < kFarUnits; ++u) {
          const int unit = first_unit + u * kWarpSize;
          later[k][u] = sums[row * hidden + min(unit, hidden - 1)];
        }
      }
#pragma unroll
      for (int k = 0; k < kFarRows; ++k) {
#pragma unroll
        for (int first = 0; first < kTile; first += width) {
          const Vector<T> values = load_shared_vector(&inputs[r + k][first]);
#pragma unroll
          for (int i = 0; i < width; ++i) {
#pragma unroll
            for (int u = 0; u < kFarUnits; ++u) {
              grad_in[u][first + i] = fma(values.values[i], later[k][u], grad_in[u][first + i]);
            }
          }
        }
      }
    }
  }
#pragma unroll
  for (int u = 0; u < kFarUnits; ++u) {
    const int unit = first_unit + u * kWarpSize;
    sum_over_warps(grad_in[u], all_sums, [&](int p, T sum) {
      if (p >= place.count || unit >= hidden) return;
      const T near = near_in[grad_in_weight.partial_at(tiles, place.first + p, hidden, unit)];
      grad_in_weight.write(arguments, tiles, place.first + p, unit, near + sum);
    });
  }
}

// Gradients of both weights where the rows of the batch are split over `splits` blocks: the sums of their parts
// [splits, positions of the segment, H], in order.
template <typename S>
__global__ void __launch_bounds__(kThreads)
    nade_merge_kernel(NadeArguments<S> arguments, NadeTiles tiles, int splits,
                      const Compute<S>* __restrict__ grad_in, const Compute<S>* __restrict__ grad_out,
                      S* __restrict__ grad_in_weight, S* __restrict__ grad_out_weight) {
  using T = Compute<S>;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, hidden = arguments.hidden;
  const int64_t size = (tiles.stop - tiles.start) * hidden;
  if (i >= size) return;
  T of_in = T(0), of_out = T(0);
  for (int s = 0; s < splits; ++s) {
    of_in += grad_in[s * size + i];
    of_out += grad_out[s * size + i];
  }
  const int64_t at = arguments.variable_at(tiles.start + static_cast<int>(i / hidden)) * hidden + i % hidden;
  from_compute(grad_in_weight[at], of_in);
  from_compute(grad_out_weight[at], of_out);
}

constexpr int64_t kEnoughBlocks = 528;  // 4 for each multiprocessor of a large GPU
constexpr int64_t kLeastRows = 64;      // of a block, where there are several for a tile

// How the backward is split.
struct BackwardPlan {
  int tile, tiles_per_segment, segments;
  int splits, rows_per_block;  // of the batch over blocks; in the general case splits is 1
  int64_t states;              // B H

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
    // Rows are split over blocks where there are too few tiles and strips for a GPU, but not below kLeastRows.
    const int64_t blocks = std::max<int64_t>(1, plan.tiles_per_segment * ceil_divide(model.hidden, kWarpSize));
    const int64_t most = plan.tile == 1 ? 1 : std::max<int64_t>(1, input.batch / kLeastRows);
    const int64_t splits = std::min(most, ceil_divide(kEnoughBlocks, blocks));
    constexpr int64_t multiple = 2 * kWarps;  // pairs of rows for each warp
    plan.rows_per_block = static_cast<int>(ceil_divide(ceil_divide(input.batch, splits), multiple) * multiple);
    plan.splits = static_cast<int>(std::max<int64_t>(1, ceil_divide(input.batch, std::max(1, plan.rows_per_block))));
    return plan;
  }
};

template <typename T>
struct BackwardScratch {
  T *checkpoints, *states, *sums, *carry, *near_in, *near_out;
  int64_t bytes;

  BackwardScratch(const NadeModel& model, const BackwardPlan& plan, void* base) {
    Scratch scratch(base);
    checkpoints = scratch.take<T>((plan.segments - 1) * plan.states);
    states = scratch.take<T>(plan.tiles_per_segment * plan.states);
    sums = scratch.take<T>(plan.tiles_per_segment * plan.states);
    carry = scratch.take<T>(model.in_bias_stride != 0 ? 0 : plan.states);
    const int64_t weights = static_cast<int64_t>(plan.tiles_per_segment) * plan.tile * model.hidden;
    near_in = scratch.take<T>(plan.tile > 1 ? plan.splits * weights : 0);
    near_out = scratch.take<T>(plan.splits > 1 ? plan.splits * weights : 0);
    bytes = scratch.bytes();
  }
};

// grad_out_weight of a segment, the tiles' sums of delta and, in the plain case, their own parts of grad_in_weight.
template <typename S>
cudaError_t backward_local(const NadeArguments<S>& arguments, const NadeBackward& output, const NadeTiles& tiles,
                           const BackwardPlan& plan, const BackwardScratch<Compute<S>>& scratch, cudaStream_t stream) {
  using T = Compute<S>;
  const T* grad = static_cast<const T*>(output.grad_parameters);
  S* const grad_out_weight = static_cast<S*>(output.grad_out_weight);
  if (plan.tile == 1) {
    return nade_backward_out_rows<S>(arguments, tiles, grad, scratch.states, scratch.sums, grad_out_weight, stream);
  }
  const int64_t blocks = tiles.count() * ceil_divide(arguments.hidden, kWarpSize);
  const bool sigmoids = arguments.activation == Activation::sigmoid && arguments.activation_scale == nullptr;
  return launch({"nade_local", dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(plan.splits)),
                 kWarps * kWarpSize, 0, stream},
                sigmoids ? nade_local_kernel<S, true> : nade_local_kernel<S, false>, arguments, tiles,
                plan.rows_per_block, grad, static_cast<const T*>(scratch.states), scratch.sums, scratch.near_in,
                WeightGradient<S>{grad_out_weight, scratch.near_out});
}

// grad_in_weight of a segment, and grad_in_bias if it is wanted.
template <typename S>
cudaError_t backward_far(const NadeArguments<S>& arguments, const NadeBackward& output, const NadeTiles& tiles,
                         const BackwardPlan& plan, const BackwardScratch<Compute<S>>& scratch,
                         const BiasGradient<Compute<S>>& bias, cudaStream_t stream) {
  using T = Compute<S>;
  S* const grad_in_weight = static_cast<S*>(output.grad_in_weight);
  if (plan.tile == 1) {
    const cudaError_t error = nade_backward_in_rows<S>(arguments, tiles, scratch.sums, grad_in_weight, stream);
    if (error != cudaSuccess || bias.blocks() == 0) return error;
    return launch({"nade_bias", static_cast<unsigned>(bias.blocks()), kWarps * kWarpSize, 0, stream},
                  nade_bias_kernel<T>, bias);
  }
  const int64_t blocks = tiles.count() * ceil_divide(arguments.hidden, kFarUnits * kWarpSize) + bias.blocks();
  const cudaError_t error =
      launch({"nade_far", dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(plan.splits)),
              kWarps * kWarpSize, 0, stream},
             nade_far_kernel<S>, arguments, tiles, plan.rows_per_block, static_cast<const T*>(scratch.sums),
             static_cast<const T*>(scratch.near_in), WeightGradient<S>{grad_in_weight, scratch.near_in}, bias);
  if (error != cudaSuccess || plan.splits == 1) return error;
  const int64_t weights = static_cast<int64_t>(tiles.stop - tiles.start) * arguments.hidden;
  return launch({"nade_merge", static_cast<unsigned>(ceil_divide(weights, kThreads)), kThreads, 0, stream},
                nade_merge_kernel<S>, arguments, tiles, plan.splits, static_cast<const T*>(scratch.near_in),
                static_cast<const T*>(scratch.near_out), grad_in_weight, static_cast<S*>(output.grad_out_weight));
}

template <typename S>
cudaError_t backward_segment(const NadeArguments<S>& arguments, const NadeBackward& output, const NadeTiles& tiles,
                             const BackwardPlan& plan, const BackwardScratch<Compute<S>>& scratch, int segment,
                             cudaStream_t stream) {
  using T = Compute<S>;
  if (arguments.hidden > 0) {  // else the weights' gradients are empty, and the grids would be too
    cudaError_t error = backward_local<S>(arguments, output, tiles, plan, scratch, stream);
    if (error != cudaSuccess) return error;
    // carry: the sum after the segment, then before it.
    error = nade_running_sums<T>(arguments.batch, arguments.hidden, tiles.count(), true, scratch.sums,
                                 segment + 1 == plan.segments ? nullptr : scratch.carry, arguments.hidden,
                                 scratch.carry, stream);
    if (error != cudaSuccess) return error;
    // After the first segment, the last to be taken, carry is complete. Where each row has its own bias, carry is
    // grad_in_bias itself.
    T* const grad_in_bias =
        segment == 0 && arguments.in_bias_stride == 0 ? static_cast<T*>(output.grad_in_bias) : nullptr;
    error = backward_far<S>(arguments, output, tiles, plan, scratch,
                            {arguments.batch, arguments.hidden, scratch.carry, grad_in_bias}, stream);
    if (error != cudaSuccess) return error;
  }
  if (arguments.batch == 0 || (output.grad_x == nullptr && output.grad_activation_scale == nullptr)) return cudaSuccess;
  return nade_backward_inputs<S>(arguments, tiles, static_cast<const T*>(output.grad_parameters), scratch.states,
                                 scratch.sums, static_cast<T*>(output.grad_x),
                                 static_cast<T*>(output.grad_activation_scale), stream);
}

template <typename S>
cudaError_t backward(const NadeModel& model, const NadeInput& input, const NadeBackward& output, void* memory,
                     cudaStream_t stream) {
  using T = Compute<S>;
  const BackwardPlan plan = BackwardPlan::of(model, input);
  BackwardScratch<T> scratch(model, plan, memory);
  if (model.in_bias_stride != 0) scratch.carry = static_cast<T*>(output.grad_in_bias);
  const NadeArguments<S> arguments(model, input);
  const int segment = plan.tiles_per_segment * plan.tile, variables = arguments.variables;
  const auto tiles_of = [&](int s) {
    return NadeTiles{s * segment, std::min(variables, (s + 1) * segment), plan.tile};
  };
  // The states of segment s, from those before it; the ones after it are kept if a later segment starts with them.
  const auto states_of = [&](int s, bool keep_after) {
    T* const after = keep_after ? scratch.checkpoints + s * plan.states : nullptr;
    const T* const before = s == 0 ? arguments.in_bias : scratch.checkpoints + (s - 1) * plan.states;
    return nade_states<S>(arguments, tiles_of(s), before, s == 0 ? arguments.in_bias_stride : arguments.hidden,
                          scratch.states, after, stream);
  };
  cudaError_t error = cudaSuccess;
  for (int s = 0; s + 1 < plan.segments; ++s) {
    error = states_of(s, true);
    if (error != cudaSuccess) return error;
  }
  for (int s = plan.segments - 1; s >= 0; --s) {
    error = states_of(s, false);
    if (error != cudaSuccess) return error;
    error = backward_segment<S>(arguments, output, tiles_of(s), plan, scratch, s, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
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
