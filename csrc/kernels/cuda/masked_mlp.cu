// One-pass sampling of a masked perceptron: one persistent kernel, a warp per sample, a block per few samples.
//
// A warp computes each unit of its sample once, when the last variable that it sees is known: lanes stride over the
// inputs and one butterfly adds them up; four units that become computable together share the reads of their inputs.
// The warps of a block walk the same weights at about the same time, so the cache serves all but the first. No barrier
// of the block is needed. Activations live in shared memory where those of a block fit, otherwise in the state tensor.
#include "activation.h"
#include "masked_mlp_cuda.h"
#include "runtime.h"

namespace ar_fast::cuda {
namespace {

constexpr int kSamplesPerBlock = 4;
constexpr int kUnitsTogether = 4;
// Two blocks of this much fit in an SM of sm_80 and later; sm_75 has 64 KiB.
constexpr size_t kMostSharedBytes = 60 * 1024;

template <typename T>
__device__ __forceinline__ T activate(MlpActivation activation, T x) {
  switch (activation) {
    case MlpActivation::relu: return x < T(0) ? T(0) : x;
    case MlpActivation::sigmoid: return sigmoid(x);
    case MlpActivation::tanh: return tanh_of(x);
    case MlpActivation::elu: return x > T(0) ? x : expm1(x);
    case MlpActivation::softplus: return softplus(x);
    case MlpActivation::silu: return x * sigmoid(x);
    case MlpActivation::gelu: return T(0.5) * x * (T(1) + erf(x * T(0.7071067811865475244)));
    default: return x > T(0) ? x : T(0.01) * x;
  }
}

// The sample of one warp. values: x by position, then each layer's activations.
template <typename S>
class Sampler {
 public:
  using T = Compute<S>;

  __device__ Sampler(const MaskedMlpSample& sample, int64_t row, T* values)
      : sample_(sample), row_(row), values_(values), lane_(lane_id()) {}

  __device__ void run() {
    const int64_t count = sample_.stop - sample_.start;
    double log_prob = 0;
    for (int64_t p = sample_.start; p < sample_.stop; ++p) {
      const T* below = values_;
      T* own = values_ + sample_.variables;
      int64_t inputs = sample_.variables;
      for (int64_t l = 0; l < sample_.hidden_layers; ++l) {
        const MaskedMlpLayer& layer = sample_.layers[l];
        hidden_units(layer, inputs, below, own, p == 0 ? 0 : layer.unit_ends[p - 1], layer.unit_ends[p]);
        __syncwarp();
        below = own;
        own += layer.units;
        inputs = layer.units;
      }
      T logit[1];
      pre_activations<1>(sample_.layers[sample_.hidden_layers], inputs, below, static_cast<int>(p), 1, logit);
      const T x = draw(p, logit[0], log_prob);
      __syncwarp();
      if (lane_ == 0) {
        values_[p] = x;
        static_cast<T*>(sample_.values)[row_ * count + p - sample_.start] = x;
      }
      __syncwarp();
    }
    if (lane_ == 0) static_cast<double*>(sample_.log_prob)[row_] = log_prob;
  }

 private:
  // Of `units` <= Units units from `unit`; all lanes get all sums.
  template <int Units>
  __device__ __forceinline__ void pre_activations(const MaskedMlpLayer& layer, int64_t inputs, const T* below, int unit,
                                                  int units, T (&sums)[Units]) const {
    const S* rows[Units];
    int extents[Units];
#pragma unroll
    for (int u = 0; u < Units; ++u) {
      const int at = unit + min(u, units - 1);
      rows[u] = static_cast<const S*>(layer.weight) + at * inputs;
      extents[u] = layer.extents[at];
      sums[u] = T(0);
    }
    for (int k = lane_; k < extents[Units - 1]; k += kWarpSize) {
      const T value = below[k];
#pragma unroll
      for (int u = 0; u < Units; ++u) {
        if (k < extents[u]) sums[u] = fma(to_compute(rows[u][k]), value, sums[u]);
      }
    }
    const T* const bias = static_cast<const T*>(layer.bias) + row_ * layer.bias_stride + unit;
#pragma unroll
    for (int u = 0; u < Units; ++u) sums[u] = warp_sum(sums[u]) + bias[min(u, units - 1)];
  }

  __device__ __forceinline__ void hidden_units(const MaskedMlpLayer& layer, int64_t inputs, const T* below, T* own,
                                               int begin, int end) const {
    for (int unit = begin; unit < end; unit += kUnitsTogether) {
      const int units = min(kUnitsTogether, end - unit);
      T sums[kUnitsTogether];
      pre_activations<kUnitsTogether>(layer, inputs, below, unit, units, sums);
      T own_sum = sums[0];
#pragma unroll
      for (int u = 1; u < kUnitsTogether; ++u) own_sum = lane_ == u ? sums[u] : own_sum;
      if (lane_ < units) own[unit + lane_] = activate(sample_.activation, own_sum);
    }
  }

  __device__ __forceinline__ T draw(int64_t p, T logit, double& log_prob) const {
    const int64_t variable = sample_.order == nullptr ? p : sample_.order[p];
    const int64_t at = row_ * sample_.variables + variable;
    if (sample_.known != nullptr && sample_.known[at] != 0) return static_cast<const T*>(sample_.given)[at];
    const T probability = sigmoid(logit / static_cast<T>(sample_.temperature));
    const double uniform = philox_uniform(sample_.seed, static_cast<uint64_t>(sample_.first_index + row_),
                                          static_cast<uint32_t>(variable), 0);
    const bool one = uniform < static_cast<double>(probability);
    const double exact = static_cast<double>(logit);
    log_prob += (one ? exact : 0.0) - softplus(exact);
    return one ? T(1) : T(0);
  }

  const MaskedMlpSample& sample_;
  const int64_t row_;
  T* const values_;
  const int lane_;
};

template <typename S>
__global__ void __launch_bounds__(kSamplesPerBlock* kWarpSize)
    masked_mlp_sample_kernel(const MaskedMlpSample sample, int64_t features, bool in_shared) {
  using T = Compute<S>;
  AR_FAST_DYNAMIC_SHARED(T, shared);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = lane_id();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kSamplesPerBlock + warp;
  if (row >= sample.batch) return;  // a whole warp, and no barrier of the block follows
  T* const state = static_cast<T*>(sample.state) + row * features;
  T* const values = in_shared ? shared + warp * features : state;
  if (in_shared) {
    for (int64_t f = lane; f < features; f += kWarpSize) values[f] = state[f];
    __syncwarp();
  }
  Sampler<S>(sample, row, values).run();
  if (in_shared) {
    __syncwarp();
    for (int64_t f = lane; f < features; f += kWarpSize) state[f] = values[f];
  }
}

template <typename S>
cudaError_t run(const MaskedMlpSample& sample, cudaStream_t stream) {
  int64_t features = sample.variables;
  for (int64_t l = 0; l < sample.hidden_layers; ++l) features += sample.layers[l].units;
  const size_t bytes = kSamplesPerBlock * static_cast<size_t>(features) * sizeof(Compute<S>);
  const bool in_shared = bytes <= kMostSharedBytes;
  const auto blocks = static_cast<unsigned>((sample.batch + kSamplesPerBlock - 1) / kSamplesPerBlock);
  return launch({"masked_mlp_sample", blocks, kSamplesPerBlock * kWarpSize, in_shared ? bytes : 0, stream},
                masked_mlp_sample_kernel<S>, sample, features, in_shared);
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

cudaError_t masked_mlp_sample_cuda(const MaskedMlpSample& sample, cudaStream_t stream) {
  switch (sample.storage) {
    case ScalarType::float32: return cuda::run<float>(sample, stream);
    case ScalarType::float64: return cuda::run<double>(sample, stream);
    case ScalarType::bfloat16: return cuda::run<bfloat16>(sample, stream);
    case ScalarType::float16: return cuda::run<float16>(sample, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ar_fast
