// NADE sampling of the plain Bernoulli case: one persistent kernel draws positions start ... stop - 1, one block per
// sample. nade_sample_general.cu handles all other cases (other heads, several weight rows per variable, a state too
// large for the registers of a block).
//
// Designed for latency: a lane owns 16 units (8 in float64) of each weight row, so up to 512 units (256) need one warp
// and no barrier; more units take up to 16 warps (12) and one barrier per position (sums by parity in two buffers).
// State and activations stay in registers. Weight rows are read well before they are needed: in_weight's while the
// position is computed, out_weight's one position ahead. One warp also knows where they lie another position ahead, so
// that its loads are among the first instructions of a position; more warps have no registers for that. If x = 0 is
// drawn, neither state nor activation changes (exact). Only the sum and one comparison are between state and draw:
// what the sum has to exceed is made 32 positions ahead from the random numbers. A position reads both rows once, 128
// bits per load, and takes 2 special-function instructions per activation and one butterfly of 5 shuffles. Where hidden
// units are sigmoids, one warp has code of its own that goes through two positions at a time.
//
// The reduction order depends only on H, so a row does not depend on the batch it is drawn in.
#include "draws_device.h"
#include "nade_cuda.h"
#include "nade_sample_general.h"

namespace ar_fast::cuda {
namespace {

// Warps of a block, as registers permit.
template <typename S>
constexpr int kMaxWarps = sizeof(S) == 8 ? 12 : 16;

// 128-bit vectors of a weight row that a lane owns: as many as registers permit beside the next position's.
template <typename S>
constexpr int kVectors = sizeof(S) == 2 ? 2 : 4;

template <typename S>
constexpr int kUnitsPerWarp = kWarpSize * kVectors<S> * Vector<S>::size;

template <typename S>
struct WeightRow {
  Vector<S> vectors[kVectors<S>];

  // Without vectors that fit, units past the last one are zero. With them, a vector past it is that of unit 0.
  template <bool aligned>
  __device__ __forceinline__ void load(const S* row, int first_unit, int hidden) {
    constexpr int size = Vector<S>::size;
#pragma unroll
    for (int v = 0; v < kVectors<S>; ++v) {
      const int unit = first_unit + v * kWarpSize * size;
      if constexpr (aligned) {
        vectors[v] = load_vector(row + (unit < hidden ? unit : 0));
      } else {
        vectors[v] = load_stored(row, unit, hidden, false);
      }
    }
  }

  // From this lane's first unit on. Vectors past the last unit stay as they are, zero: the loads have predicates that
  // do not change, and addresses a constant apart.
  __device__ __forceinline__ void load_inside(const S* lane_row, int first_unit, int hidden) {
    constexpr int size = Vector<S>::size;
#pragma unroll
    for (int v = 0; v < kVectors<S>; ++v) {
      if (first_unit + v * kWarpSize * size < hidden) vectors[v] = load_vector(lane_row + v * kWarpSize * size);
    }
  }
};

// aligned: weight rows can be read 128 bits at a time. sigmoids: the activation is a sigmoid, and there is no
// activation_scale.
template <typename S, bool many_warps, bool aligned, bool sigmoids>
__global__ void __launch_bounds__(many_warps ? kMaxWarps<S> * kWarpSize : kWarpSize, 1)
    nade_sample_kernel(NadeArguments<S> arguments, Draws draws, Compute<S>* states) {
  using T = Compute<S>;
  constexpr int size = Vector<S>::size, units = kVectors<S> * size;
  AR_FAST_SHARED(T, warp_sums, [2][kMaxWarps<S>]);
  const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize, hidden = arguments.hidden;
  const int64_t row = blockIdx.x;
  const int start = static_cast<int>(draws.start), stop = static_cast<int>(draws.stop);
  const int first_unit = warp * kUnitsPerWarp<S> + lane * size;
  const bool scaled = !sigmoids && arguments.activation_scale != nullptr;
  T* const state = states + row * hidden;

  T a[units], h[units];
#pragma unroll
  for (int j = 0; j < units; ++j) {
    const int unit = first_unit + j / size * kWarpSize * size + j % size;
    a[j] = unit < hidden ? state[unit] : T(0);
  }
  bool changed = true;
  double log_prob = 0;
  constexpr bool ahead = aligned && !many_warps;
  WeightRow<S> in{}, out{}, next_out{};
  int64_t this_row = static_cast<int64_t>(arguments.variable_at(start)) * hidden;
  // With `ahead`, the places of in_weight's row at this position and of out_weight's at the next, in vectors. The
  // launcher sees to it that they fit.
  const S* const in_weight = keep(arguments.in_weight + first_unit);
  const S* const out_weight = keep(arguments.out_weight + first_unit);
  const auto place_at = [&](int position) {
    return static_cast<uint32_t>(arguments.variable_at(min(position, stop - 1))) * static_cast<uint32_t>(hidden / size);
  };
  uint32_t this_place = 0, next_place = 0;
  if constexpr (ahead) {
    this_place = place_at(start);
    next_place = place_at(start + 1);
    out.load_inside(out_weight + static_cast<int64_t>(this_place) * size, first_unit, hidden);
  } else {
    out.template load<aligned>(arguments.out_weight + this_row, first_unit, hidden);
  }

  for (int first = start; first < stop; first += kWarpSize) {
    // Lane l looks up what position first + l needs, and keeps its results: the logit replaces out_bias, and the value
    // replaces the given one. This leaves enough registers to float64 with many warps.
    const bool inside = first + lane < stop;
    const int lane_variable = inside ? arguments.variable_at(first + lane) : 0;
    const T lane_scale = sigmoids ? T(1) : arguments.scale(lane_variable);
    T lane_logit = arguments.out_bias[lane_variable];
    const T* const lane_known_value = inside ? draws.known_value<T>(row, first + lane) : nullptr;
    T lane_value = lane_known_value != nullptr ? *lane_known_value : T(0);
    // The variable is 1 where u < sigmoid((bias + sum) / temperature): where the sum is above this threshold. No sum is
    // above that of a known value.
    const double lane_uniform = draw_uniform(draws, row, inside ? first + lane : stop - 1, 0);
    const double drawn_threshold =
        draws.temperature * (log(lane_uniform) - log1p(-lane_uniform)) - static_cast<double>(lane_logit);
    const T lane_threshold =
        lane_known_value != nullptr ? infinity<T> : static_cast<T>(drawn_threshold);
    const int positions = min(kWarpSize, stop - first);
    const uint32_t lane_place = ahead ? place_at(first + lane + 2) : 0;
    // out: out_weight's row at position p; next_out: takes that of the next position.
    const auto draw_position = [&](int p, const WeightRow<S>& out, WeightRow<S>& next_out) {
      // in_weight's row is needed at the end of this position, out_weight's at the start of the next.
      if constexpr (ahead) {
        in.load_inside(in_weight + static_cast<int64_t>(this_place) * size, first_unit, hidden);
        next_out.load_inside(out_weight + static_cast<int64_t>(next_place) * size, first_unit, hidden);
        this_place = next_place;
        next_place = __shfl_sync(kFullMask, lane_place, p);
      } else {
        const int next_variable = p + 1 < positions ? __shfl_sync(kFullMask, lane_variable, p + 1)
                                          : arguments.variable_at(min(first + p + 1, stop - 1));
        in.template load<aligned>(arguments.in_weight + this_row, first_unit, hidden);
        this_row = static_cast<int64_t>(next_variable) * hidden;
        next_out.template load<aligned>(arguments.out_weight + this_row, first_unit, hidden);
      }

      // Before the sum, which then is all that the draw waits for; more warps have no registers for that.
      T threshold{}, given{};
      const auto look_up = [&] {
        threshold = __shfl_sync(kFullMask, lane_threshold, p);
        given = __shfl_sync(kFullMask, lane_value, p);
      };
      if constexpr (!many_warps) look_up();
      if (changed || scaled) {
        if constexpr (sigmoids) {
          sigmoid(a, h);
        } else {
          activate(arguments.activation, scaled ? __shfl_sync(kFullMask, lane_scale, p) : T(1), a, h);
        }
      }
      T parts[4] = {};
#pragma unroll
      for (int j = 0; j < units; ++j) {
        const T part = fma(to_compute(out.vectors[j / size].values[j % size]), h[j], parts[j % 4]);
        const bool inside_row = !aligned || ahead || first_unit + j / size * kWarpSize * size < hidden;
        parts[j % 4] = inside_row ? part : parts[j % 4];
      }
      T sum = warp_sum((parts[0] + parts[1]) + (parts[2] + parts[3]));
      if constexpr (many_warps) {
        T(&sums)[kMaxWarps<S>] = warp_sums[(first + p) % 2];
        if (lane == 0) sums[warp] = sum;
        __syncthreads();
        sum = sums[0];
        for (int w = 1; w < warps; ++w) sum += sums[w];
      }
      if constexpr (many_warps) look_up();
      const bool above = sum > threshold;
      const T x = above ? T(1) : given;
      if (lane == p) {
        lane_value = x;
        lane_logit += sum;
      }
      changed = above || given != T(0);
      if (changed) {
#pragma unroll
        for (int j = 0; j < units; ++j) a[j] = fma(x, to_compute(in.vectors[j / size].values[j % size]), a[j]);
      }
    };
    if constexpr (sigmoids) {
      // Two at a time, so that the next row becomes this one without a move.
      for (int p = 0; p < positions; p += 2) {
        draw_position(p, out, next_out);
        if (p + 1 == positions) break;  // the last position of all
        draw_position(p + 1, next_out, out);
      }
    } else {
      for (int p = 0; p < positions; ++p) {
        draw_position(p, out, next_out);
        out = next_out;
      }
    }
    if (warp == 0) {
      if (inside) draws.values_of<T>(row)[first + lane] = lane_value;
      const double logit = static_cast<double>(lane_logit);
      const bool drawn = inside && lane_known_value == nullptr;
      log_prob += warp_sum(drawn ? static_cast<double>(lane_value) * logit - softplus(logit) : 0.0);
    }
  }
#pragma unroll
  for (int j = 0; j < units; ++j) {
    const int unit = first_unit + j / size * kWarpSize * size + j % size;
    if (unit < hidden) state[unit] = a[j];
  }
  if (threadIdx.x == 0) draws.log_prob[row] = log_prob;
}

template <typename S>
int64_t warps_for(const NadeModel& model) {
  return std::max<int64_t>(1, ceil_divide(model.hidden, kUnitsPerWarp<S>));
}

// Returns 0 for cases that the general kernel draws.
template <typename S>
int64_t plain_warps(const NadeModel& model, const NadeSample& request) {
  const bool plain = request.draws.head.kind == HeadKind::bernoulli && !request.gathers &&
                     is_plain(model, NadeInput{request.draws.batch, nullptr, nullptr});
  const int64_t warps = warps_for<S>(model);
  return plain && warps <= kMaxWarps<S> ? warps : 0;
}

template <typename S>
cudaError_t draw(const NadeModel& model, const NadeSample& request, void* scratch, cudaStream_t stream) {
  using T = Compute<S>;
  const int64_t warps = plain_warps<S>(model, request);
  if (warps == 0) {
    return nade_sample_general<S>(model, request, GeneralSamplePlan::of(model, request), scratch, stream);
  }
  const NadeArguments<S> arguments(model, NadeInput{request.draws.batch, nullptr, nullptr});
  // Without hidden units there is no unit 0 to read in place of others.
  // One warp counts the places of rows in vectors, in 32 bits.
  const bool fits = warps > 1 || model.variables * (model.hidden / Vector<S>::size) <= int64_t{UINT32_MAX};
  const bool aligned = arguments.aligned && model.hidden > 0 && fits;
  const bool sigmoids = model.activation == Activation::sigmoid && model.activation_scale == nullptr;
  const auto kernel = warps > 1 ? aligned ? nade_sample_kernel<S, true, true, false>
                                          : nade_sample_kernel<S, true, false, false>
                      : !aligned ? nade_sample_kernel<S, false, false, false>
                      : sigmoids ? nade_sample_kernel<S, false, true, true>
                                 : nade_sample_kernel<S, false, true, false>;
  return launch({"nade_sample", static_cast<unsigned>(request.draws.batch), static_cast<unsigned>(warps * kWarpSize), 0,
                 stream},
                kernel, arguments, request.draws, static_cast<T*>(request.state));
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

NadeSampleCut nade_sample_cuda_cut(const NadeModel& model, const NadeSample& sample) {
  int64_t warps = 0;
  cuda::dispatch_storage(model.storage, [&](auto storage) {
    warps = cuda::plain_warps<decltype(storage)>(model, sample);
    return cudaSuccess;
  });
  if (warps > 0) return {true, warps, 0, true, true, sample.draws.batch, 0};
  const auto plan = cuda::GeneralSamplePlan::of(model, sample);
  return {false, cuda::general_sample_warps, plan.shared_bytes, plan.units_shared, plan.parameters_shared, plan.rows,
          plan.scratch_bytes};
}

cudaError_t nade_sample_cuda(const NadeModel& model, const NadeSample& sample, void* scratch, cudaStream_t stream) {
  return cuda::dispatch_storage(model.storage, [&](auto storage) {
    return cuda::draw<decltype(storage)>(model, sample, scratch, stream);
  });
}

}  // namespace ar_fast
