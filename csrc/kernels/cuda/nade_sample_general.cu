// NADE sampling for every head: one persistent block of 8 warps per sample draws positions start ... stop - 1.
//
// A position reads K rows of out_weight and one of in_weight, 128 bits per load. Each warp takes groups of 8 rows of
// out_weight; a group shares each read of the activations, with 4 or 8 loads of a lane in flight. If there are fewer
// groups than warps, several warps split the hidden units of a group. Warp 0 draws; the last warp computes log p of the
// value while the others continue, with the parameters in two alternating buffers. A thread keeps the same hidden units
// throughout, so that its part of the state needs no barrier. There are three barriers per position (activations,
// parameters, value), two if the state did not change, none if the value is known. Some work is done before a value
// needs it: reading in_weight's row (while the parameters are computed, unless the value selects the row), drawing the
// random numbers (32 positions at a time), and looking up a position's data (one ahead).
//
// Designed for L2, 24 bytes per clock and SM: in float32 a position takes (K + 1) H / 6 clocks for the weights and, at
// 8 activations per clock, H / 8 for the activations. State, activations and parameters are in shared memory if they
// fit, else in global memory that only this block accesses.
//
// The reduction order depends only on K and H, so a row does not depend on the batch it is drawn in.
#include "nade_sample_general.h"

#include "draws_device.h"

namespace ar_fast::cuda {
namespace {

constexpr int kWarps = general_sample_warps;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kRows = 8;  // parameter rows that a warp takes together
// How many of those rows have loads in flight together.
template <typename S>
constexpr int kLoads = sizeof(S) == 4 ? 8 : 4;

template <typename T>
struct GeneralSample {
  Draws draws;
  bool gathers;
  int64_t first_row;  // first row of this launch; scratch is indexed relative to it
  T* state;
  int padded;
  int64_t most_rows;
  T* units;       // [rows, 2, padded]: state and activations; null means shared memory
  T* parameters;  // [rows, 2, most_rows]; null means shared memory
};

// What every thread knows about a position.
template <typename T>
struct SamplePosition {
  int variable, rows;
  int64_t in_row, in_end, out_row;
  T scale, given;
  bool known, gathers;

  template <typename S>
  static __device__ __forceinline__ SamplePosition of(const NadeArguments<S>& model, const GeneralSample<T>& sample,
                                                      int64_t row, int p) {
    SamplePosition here;
    here.variable = model.variable_at(p);
    here.in_row = model.first_in_row(here.variable);
    here.in_end = model.first_in_row(here.variable + 1);
    here.gathers = sample.gathers || model.gathers(here.variable);
    here.out_row = model.first_out_row(here.variable);
    here.rows = static_cast<int>(model.first_out_row(here.variable + 1) - here.out_row);
    here.scale = model.scale(here.variable);
    const T* const known = sample.draws.template known_value<T>(row, p);
    here.known = known != nullptr;
    here.given = here.known ? *known : T(0);
    return here;
  }
};

// N values of shared memory, or of memory that the kernel itself has written, 128 bits at a time.
template <typename T, int N>
__device__ __forceinline__ void load_reals(const T* from, T (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += Vector<T>::size) {
    const Vector<T> loaded = load_shared_vector(from + i);
#pragma unroll
    for (int j = 0; j < Vector<T>::size; ++j) values[i + j] = loaded.values[j];
  }
}

template <typename T, int N>
__device__ __forceinline__ void store_reals(T* to, const T (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += Vector<T>::size) {
    Vector<T> stored;
#pragma unroll
    for (int j = 0; j < Vector<T>::size; ++j) stored.values[j] = values[i + j];
    store_vector(to + i, stored);
  }
}

// Warps that split the hidden units of a group of parameter rows: 1, 2, 4 or 8. If it is more than one, a variable has
// at most 8 kRows sums of `rows` parameters.
__device__ __forceinline__ int segments_of(int rows) {
  const int groups = (rows + kRows - 1) / kRows;
  int segments = kWarps;
  while (segments > 1 && segments * groups > kWarps) segments /= 2;
  return segments;
}

// sums [segments, rows]: the shares of the parameters in the order of segments; the first one has out_bias.
template <typename S>
__device__ __forceinline__ void sum_parameters(const NadeArguments<S>& model, const SamplePosition<Compute<S>>& here,
                                               const Compute<S>* h, Compute<S>* sums) {
  using T = Compute<S>;
  constexpr int size = Vector<S>::size;
  const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize, hidden = model.hidden;
  const int segments = segments_of(here.rows), tasks = (here.rows + kRows - 1) / kRows * segments;
  for (int task = warp; task < tasks; task += kWarps) {
    const int first = task / segments * kRows, segment = task % segments;
    const S* const weight = model.out_weight + (here.out_row + first) * hidden;
    T dots[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) dots[k] = T(0);
    for (int u = (segment * kWarpSize + lane) * size; u < hidden; u += segments * kWarpSize * size) {
      T active[size];
      load_reals(h + u, active);
#pragma unroll
      for (int some = 0; some < kRows; some += kLoads<S>) {
        Vector<S> weights[kLoads<S>];
#pragma unroll
        for (int k = 0; k < kLoads<S>; ++k) {
          weights[k] = Vector<S>{};
          if (first + some + k >= here.rows) continue;
          weights[k] = load_stored(weight + static_cast<int64_t>(some + k) * hidden, u, hidden, model.aligned);
        }
#pragma unroll
        for (int k = 0; k < kLoads<S>; ++k) {
          if (first + some + k >= here.rows) continue;
#pragma unroll
          for (int i = 0; i < size; ++i) {
            dots[some + k] = fma(to_compute(weights[k].values[i]), active[i], dots[some + k]);
          }
        }
      }
    }
    const T sum = warp_sum_8(dots);
    const int k = first + lane / 4;
    if (lane % 4 != 0 || k >= here.rows) continue;
    sums[segment * here.rows + k] = segment == 0 ? model.out_bias[here.out_row + k] + sum : sum;
  }
}

// Adds up the segments in order; one warp does this.
template <typename T>
__device__ __forceinline__ void add_segments(int rows, T* sums) {
  const int segments = segments_of(rows), k = lane_id();
  if (segments == 1) return;
  if (k < rows) {
    T sum = sums[k];
    for (int s = 1; s < segments; ++s) sum += sums[s * rows + k];
    sums[k] = sum;
  }
  __syncwarp();
}

template <typename S, bool units_shared>
__global__ void __launch_bounds__(kThreads, 2)
    nade_sample_general_kernel(NadeArguments<S> model, GeneralSample<Compute<S>> sample) {
  using T = Compute<S>;
  constexpr int size = Vector<S>::size, stride = kThreads * size;
  AR_FAST_DYNAMIC_SHARED(T, shared);
  AR_FAST_SHARED(T, drawn, [1]);
  const int t = static_cast<int>(threadIdx.x), lane = lane_id(), warp = t / kWarpSize;
  const int hidden = model.hidden, padded = sample.padded;
  const int64_t place = blockIdx.x, row = sample.first_row + place;
  const Draws& draws = sample.draws;
  const int start = static_cast<int>(draws.start), stop = static_cast<int>(draws.stop);
  const bool scaled = model.activation_scale != nullptr;
  T* const buffers = sample.parameters == nullptr ? shared : sample.parameters + place * 2 * sample.most_rows;
  T* const a = units_shared ? shared + (sample.parameters == nullptr ? 2 * sample.most_rows : 0)
                            : sample.units + place * 2 * padded;
  T* const h = a + padded;
  T* const state = sample.state + row * hidden;

  for (int u = t * size; u < padded; u += stride) {
    T own[size];
#pragma unroll
    for (int i = 0; i < size; ++i) own[i] = u + i < hidden ? state[u + i] : T(0);
    store_reals(a + u, own);
  }

  const S* added = nullptr;  // the row of in_weight that is not added to the state yet, and its factor
  T factor = T(0);
  bool gathered = false;  // whether a category selected it
  Vector<S> ahead{};      // this thread's first vector of that row, unless a category selected it
  // a += factor added, and h = f(scale a), for the thread's own units.
  const auto advance = [&](bool activates, T scale) {
    for (int u = t * size; u < padded; u += stride) {
      T own[size], active[size];
      load_reals(a + u, own);
      if (added != nullptr) {
        const Vector<S> weights = u < stride && !gathered ? ahead : load_stored(added, u, hidden, model.aligned);
#pragma unroll
        for (int i = 0; i < size; ++i) own[i] = fma(factor, to_compute(weights.values[i]), own[i]);
        store_reals(a + u, own);
      }
      if (!activates) continue;
      activate(model.activation, scale, own, active);
#pragma unroll
      for (int i = 0; i < size; ++i) {
        if (u + i >= hidden) active[i] = T(0);
      }
      store_reals(h + u, active);
    }
    added = nullptr;
  };

  bool stale = true;  // h does not belong to the state
  int turn = 0;       // the buffer of the next parameters
  double log_prob = 0;
  NoiseAhead noise;
  SamplePosition<T> next = SamplePosition<T>::of(model, sample, row, start);
  for (int p = start; p < stop; ++p) {
    const SamplePosition<T> here = next;
    if (p + 1 < stop) next = SamplePosition<T>::of(model, sample, row, p + 1);
    if (warp == 0) noise.look(draws, row, p);
    if (here.known) {
      if (added != nullptr) advance(false, T(1));
    } else if (stale || scaled) {
      advance(true, here.scale);
      stale = false;
      __syncthreads();
    }
    const S* const in_row = model.in_weight + here.in_row * hidden;
    if (!here.gathers && t * size < hidden) ahead = load_stored(in_row, t * size, hidden, model.aligned);
    T x = here.given;
    if (!here.known) {
      T* const parameters = buffers + turn * sample.most_rows;
      turn ^= 1;
      sum_parameters(model, here, h, parameters);
      __syncthreads();
      if (warp == 0) {
        add_segments(here.rows, parameters);
        x = draw_value(draws, row, p, parameters, here.rows, noise.here());
        if (lane == 0) drawn[0] = x;
      }
      __syncthreads();
      x = drawn[0];
      if (warp == kWarps - 1) log_prob += drawn_log_prob(draws, p, parameters, here.rows, x);
    }
    if (t == 0) draws.values_of<T>(row)[p] = x;
    gathered = here.gathers;
    if (gathered) {
      const Added<T> chosen = NadeArguments<S>::gathered(here.in_row, here.in_end, x);
      added = model.in_weight + chosen.row * hidden;
      factor = chosen.factor;
      stale = true;
    } else if (x != T(0)) {
      added = in_row;
      factor = x;
      stale = true;
    }
  }
  if (added != nullptr) advance(false, T(1));
  for (int u = t * size; u < padded; u += stride) {
    T own[size];
    load_reals(a + u, own);
#pragma unroll
    for (int i = 0; i < size; ++i) {
      if (u + i < hidden) state[u + i] = own[i];
    }
  }
  if (t == kThreads - 1) draws.log_prob[row] = log_prob;
}

template <typename T>
void cut_scratch(const GeneralSamplePlan& plan, Scratch& scratch, T** units, T** parameters) {
  *units = plan.units_shared ? nullptr : scratch.take<T>(plan.rows * 2 * plan.padded);
  *parameters = plan.parameters_shared ? nullptr : scratch.take<T>(plan.rows * 2 * plan.most_rows);
}

}  // namespace

GeneralSamplePlan GeneralSamplePlan::of(const NadeModel& model, const NadeSample& sample) {
  const bool wide = model.storage == ScalarType::float64;
  const int64_t real = wide ? 8 : 4, vector = wide ? 2 : model.storage == ScalarType::float32 ? 4 : 8;
  GeneralSamplePlan plan;
  plan.padded = ceil_divide(model.hidden, vector) * vector;
  // If variables differ, only the device knows the largest number of parameters; and the segments' sums need 8 kRows.
  const int64_t rows = model.out_offsets != nullptr ? model.out_rows : model.out_rows / model.variables;
  plan.most_rows = std::max<int64_t>(kWarps * kRows, ceil_divide(rows, 4) * 4);
  const int64_t units_bytes = 2 * plan.padded * real, parameters_bytes = 2 * plan.most_rows * real;
  plan.units_shared = units_bytes <= kMostSharedBytes;
  plan.parameters_shared = (plan.units_shared ? units_bytes : 0) + parameters_bytes <= kMostSharedBytes;
  plan.shared_bytes = (plan.units_shared ? units_bytes : 0) + (plan.parameters_shared ? parameters_bytes : 0);
  const int64_t row_bytes = units_bytes + parameters_bytes - plan.shared_bytes;
  plan.rows = std::min(sample.draws.batch, std::max<int64_t>(1, kScratchBudget / std::max<int64_t>(1, row_bytes)));
  Scratch scratch(nullptr);
  if (wide) {
    double *units, *parameters;
    cut_scratch(plan, scratch, &units, &parameters);
  } else {
    float *units, *parameters;
    cut_scratch(plan, scratch, &units, &parameters);
  }
  plan.scratch_bytes = scratch.bytes();
  return plan;
}

template <typename S>
cudaError_t nade_sample_general(const NadeModel& model, const NadeSample& request, const GeneralSamplePlan& plan,
                                void* memory, cudaStream_t stream) {
  using T = Compute<S>;
  const NadeArguments<S> arguments(model, NadeInput{request.draws.batch, nullptr, nullptr});
  const auto kernel =
      plan.units_shared ? nade_sample_general_kernel<S, true> : nade_sample_general_kernel<S, false>;
  GeneralSample<T> sample = {request.draws, request.gathers, 0, static_cast<T*>(request.state),
                             static_cast<int>(plan.padded), plan.most_rows, nullptr, nullptr};
  Scratch scratch(memory);
  cut_scratch(plan, scratch, &sample.units, &sample.parameters);
  for (; sample.first_row < request.draws.batch; sample.first_row += plan.rows) {
    const int64_t rows = std::min(plan.rows, request.draws.batch - sample.first_row);
    const cudaError_t error = launch({"nade_sample_general", static_cast<unsigned>(rows), kThreads,
                                      static_cast<size_t>(plan.shared_bytes), stream},
                                     kernel, arguments, sample);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

#define AR_FAST_INSTANTIATE(S)                                                                              \
  template cudaError_t nade_sample_general<S>(const NadeModel&, const NadeSample&, const GeneralSamplePlan&, \
                                              void*, cudaStream_t);
AR_FAST_INSTANTIATE(float)
AR_FAST_INSTANTIATE(float16)
AR_FAST_INSTANTIATE(bfloat16)
AR_FAST_INSTANTIATE(double)
#undef AR_FAST_INSTANTIATE

}  // namespace ar_fast::cuda
