// Offset NADE sampling: one persistent block of 8 warps per sample draws positions start ... stop - 1.
//
// Threads own hidden units. If there are fewer units than threads, several threads split the inputs of a unit, where
// each takes every n-th one, and their sums are added in order. Lanes of a warp read neighbouring units of one row of a
// weight; the weights stay in L1 and L2. The warps split the parameters, and warp 0 draws. There are four barriers per
// position: after the taps, the activations, the parameters and the draw; and two for each further hidden layer. The
// history of values is in global memory that only this block accesses.
#include "offset_nade_cuda.h"

#include <algorithm>

#include "draws_device.h"

namespace ar_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// Threads that split the inputs of a unit: all threads by those along the units, a power of two and whole warps.
AR_FAST_HOST_DEVICE inline int segments_of(int64_t units) {
  int threads = kWarpSize;
  while (threads < kThreads && threads < units) threads *= 2;
  return kThreads / threads;
}

template <typename S>
class OffsetSampler {
 public:
  using T = Compute<S>;

  // memory: pre-activations, H; activations, as many as the widest layer has; partial sums; then the parameters.
  __device__ OffsetSampler(const OffsetNadeSample& sample, int64_t row, int64_t widest, int64_t partials, T* memory)
      : s_(sample),
        draws_(sample.draws),
        row_(row),
        hidden_(static_cast<int>(sample.hidden)),
        channels_(static_cast<int>(sample.channels)),
        parameters_count_(static_cast<int>(sample.parameters)),
        segments_(segments_of(sample.hidden)),
        thread_(static_cast<int>(threadIdx.x)),
        a_(memory),
        h_(a_ + hidden_),
        partial_(h_ + widest),
        parameters_(partial_ + partials) {}

  __device__ void run() {
    // history[p] is the value at position p.
    T* const history = draws_.values_of<T>(row_);
    double log_prob = 0;
    for (int64_t p = draws_.start; p < draws_.stop; ++p) {
      const int channel = static_cast<int>(p % channels_);
      const T* const known = draws_.known_value<T>(row_, p);
      if (channel == 0 || p == draws_.start) {
        neighbourhood(history, p - channel);
        for (int s = 0; s < channel; ++s) add_center(s, history[p - channel + s]);
      } else {
        add_center(channel - 1, history[p - 1]);
      }
      if (known != nullptr) {
        if (thread_ == 0) history[p] = *known;
      } else {
        activations();
        __syncthreads();
        for (int l = 0; l < static_cast<int>(s_.layers); ++l) layer(l);
        output((s_.shared_output ? channel : draws_.variable(p)) * s_.parameters);
        __syncthreads();
        if (thread_ < kWarpSize) {
          const DrawNoise noise = draw_noise(draws_, row_, p);
          const T x = draw_value(draws_, row_, p, parameters_, parameters_count_, noise);
          log_prob += drawn_log_prob(draws_, p, parameters_, parameters_count_, x);
          if (thread_ == 0) history[p] = x;
        }
      }
      __syncthreads();
    }
    if (thread_ == 0) draws_.log_prob[row_] = log_prob;
  }

 private:
  __device__ __forceinline__ const S* in_row(int64_t row) const {
    return static_cast<const S*>(s_.in_weight) + row * s_.values_per_input * hidden_;
  }

  // sum + x in_weight[row], for one unit.
  __device__ __forceinline__ T add(int64_t row, T x, int unit, T sum) const {
    if (!s_.gathers) return fma(x, to_compute(in_row(row)[unit]), sum);
    if (!is_category(x, s_.values_per_input)) return not_a_number<T>;
    return sum + to_compute(in_row(row)[static_cast<int64_t>(x) * hidden_ + unit]);
  }

  // a = in_bias + the taps of the pixel at position p. Each thread continues with its own units of a, as add_center and
  // activations do, so these need no barrier.
  __device__ void neighbourhood(const T* history, int64_t p) {
    const int64_t pixel = p / channels_, r = pixel / s_.columns, c = pixel % s_.columns;
    const int per_row = kThreads / segments_, own = thread_ % per_row, segment = thread_ / per_row;
    const int64_t left = c < s_.side ? c : s_.side;
    const int64_t all_right = c + s_.side < s_.columns ? s_.side : s_.columns - 1 - c;
    for (int unit = own; unit < hidden_; unit += per_row) {
      T sum = T(0);
      int64_t before = 0;  // taps on the grid in the rows of taps before this one
      for (int64_t i = r < s_.up ? s_.up - r : 0; i <= s_.up; ++i) {
        const int64_t right = i == s_.up ? -1 : all_right, count = (left + right + 1) * channels_;
        const T* const x = history + p - ((s_.up - i) * s_.columns + left) * channels_;
        const int64_t row = (i * (2 * s_.side + 1) + s_.side - left) * channels_;
        for (int64_t k = (segment - before % segments_ + segments_) % segments_; k < count; k += segments_) {
          sum = add(row + k, x[k], unit, sum);
        }
        before += count;
      }
      partial_[static_cast<int64_t>(segment) * hidden_ + unit] = sum;
    }
    __syncthreads();
    const T* const bias = static_cast<const T*>(s_.in_bias) + row_ * s_.in_bias_stride;
    for (int unit = thread_; unit < hidden_; unit += kThreads) {
      T sum = bias[unit];
      for (int s = 0; s < segments_; ++s) sum += partial_[static_cast<int64_t>(s) * hidden_ + unit];
      a_[unit] = sum;
    }
  }

  __device__ void add_center(int channel, T x) {
    const int64_t row = s_.taps() * channels_ + channel;
    for (int unit = thread_; unit < hidden_; unit += kThreads) a_[unit] = add(row, x, unit, a_[unit]);
  }

  __device__ void activations() {
    for (int unit = thread_; unit < hidden_; unit += kThreads) {
      const T before[1] = {a_[unit]};
      T after[1];
      activate(s_.activation, T(1), before, after);
      h_[unit] = after[0];
    }
  }

  // h = f(bias + the product of the layer's weight with h), by the threads as they split the taps.
  __device__ void layer(int l) {
    const OffsetNadeLayer& own = s_.layer[l];
    const int inputs = static_cast<int>(s_.units(l)), units = static_cast<int>(own.units);
    const int segments = segments_of(units), per_row = kThreads / segments, segment = thread_ / per_row;
    const S* const weight = static_cast<const S*>(own.weight);
    for (int unit = thread_ % per_row; unit < units; unit += per_row) {
      T sum = T(0);
      for (int k = segment; k < inputs; k += segments) {
        sum = fma(h_[k], to_compute(weight[static_cast<int64_t>(k) * units + unit]), sum);
      }
      partial_[static_cast<int64_t>(segment) * units + unit] = sum;
    }
    __syncthreads();
    const T* const bias = static_cast<const T*>(own.bias);
    for (int unit = thread_; unit < units; unit += kThreads) {
      T before[1] = {bias[unit]}, after[1];
      for (int s = 0; s < segments; ++s) before[0] += partial_[static_cast<int64_t>(s) * units + unit];
      activate(s_.activation, T(1), before, after);
      h_[unit] = after[0];
    }
    __syncthreads();
  }

  __device__ void output(int64_t first) {
    const int lane = lane_id(), inputs = static_cast<int>(s_.units(s_.layers));
    for (int k = thread_ / kWarpSize; k < parameters_count_; k += kWarps) {
      const S* const weight = static_cast<const S*>(s_.out_weight) + (first + k) * inputs;
      T sum = T(0);
      for (int unit = lane; unit < inputs; unit += kWarpSize) sum = fma(to_compute(weight[unit]), h_[unit], sum);
      sum = warp_sum(sum);
      if (lane == 0) parameters_[k] = static_cast<const T*>(s_.out_bias)[first + k] + sum;
    }
  }

  const OffsetNadeSample& s_;
  const Draws& draws_;
  const int64_t row_;
  const int hidden_, channels_, parameters_count_, segments_, thread_;
  T *const a_, *const h_, *const partial_, *const parameters_;
};

template <typename S>
__global__ void __launch_bounds__(kThreads, sizeof(Compute<S>) == 8 ? 1 : 2)
    offset_nade_sample_kernel(const OffsetNadeSample sample, int64_t widest, int64_t partials, int64_t reals,
                              Compute<S>* scratch) {
  using T = Compute<S>;
  AR_FAST_DYNAMIC_SHARED(T, shared);
  const int64_t row = blockIdx.x;
  OffsetSampler<S>(sample, row, widest, partials, scratch == nullptr ? shared : scratch + row * reals).run();
}

// The most partial sums that a layer has.
int64_t partials_of(const OffsetNadeSample& sample) {
  int64_t most = 0;
  for (int64_t l = 0; l <= sample.layers; ++l) most = std::max(most, segments_of(sample.units(l)) * sample.units(l));
  return most;
}

// How many reals a block's memory holds.
int64_t reals_of(const OffsetNadeSample& sample) {
  const int64_t reals = sample.hidden + sample.most_units() + partials_of(sample) + sample.parameters;
  return (reals + 31) / 32 * 32;
}

template <typename S>
cudaError_t run(const OffsetNadeSample& sample, void* scratch, cudaStream_t stream) {
  const OffsetNadeCut cut = offset_nade_cuda_cut(sample);
  return launch({"offset_nade_sample", static_cast<unsigned>(sample.draws.batch), kThreads,
                 static_cast<size_t>(cut.shared_bytes), stream},
                offset_nade_sample_kernel<S>, sample, sample.most_units(), partials_of(sample), reals_of(sample),
                cut.shared_bytes > 0 ? nullptr : static_cast<Compute<S>*>(scratch));
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

OffsetNadeCut offset_nade_cuda_cut(const OffsetNadeSample& sample) {
  OffsetNadeCut cut{};
  cut.segments = cuda::segments_of(sample.hidden);
  const int64_t bytes = cuda::reals_of(sample) * (sample.storage == ScalarType::float64 ? 8 : 4);
  cut.shared_bytes = bytes <= cuda::kMostSharedBytes ? bytes : 0;
  cut.scratch_bytes = cut.shared_bytes > 0 ? 0 : bytes * sample.draws.batch;
  return cut;
}

cudaError_t offset_nade_sample_cuda(const OffsetNadeSample& sample, void* scratch, cudaStream_t stream) {
  return cuda::dispatch_storage(sample.storage, [&](auto storage) {
    return cuda::run<decltype(storage)>(sample, scratch, stream);
  });
}

}  // namespace ar_fast
