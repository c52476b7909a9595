// One-pass sampling of a masked perceptron: one persistent kernel that interprets the program of layers, with a warp
// per sample and a block per few samples.
//
// A warp computes each unit of its sample once, when the last variable that it sees is known: lanes stride over the
// inputs, and one butterfly adds them up. Four units that can be computed together share the reads of their inputs. The
// warps of a block read the same weights at about the same time, so all but the first find them in the cache. The block
// needs no barrier. Activations are in shared memory if those of a block fit, otherwise in the state tensor.
#include "draws_device.h"
#include "masked_mlp_cuda.h"
#include "runtime.h"

namespace ar_fast::cuda {
namespace {

constexpr int kSamplesPerBlock = 4;
constexpr int kUnitsTogether = 4;

template <typename T>
struct Transformed {
  T x, log_derivative;
};

// A call of its own leaves its registers to the products.
template <typename T>
__device__ __noinline__ Transformed<T> transformed(const Transform transform, T* parameters, int rows, T noise) {
  Transformed<T> result;
  result.x = transform_inverse(transform, parameters, rows, noise, result.log_derivative);
  return result;
}

// The sample of one warp. values: the columns, then each layer; parameters: those of one variable.
template <typename S>
class Sampler {
 public:
  using T = Compute<S>;

  __device__ Sampler(const MaskedMlpSample& sample, int64_t row, T* values, T* parameters)
      : sample_(sample), draws_(sample.draws), row_(row), values_(values), parameters_(parameters), lane_(lane_id()) {}

  __device__ void run() {
    double log_prob = 0;
    for (int64_t p = draws_.start; p < draws_.stop; ++p) {
      const MaskedMlpRange rows = masked_mlp_parameters(sample_, p), columns = masked_mlp_columns(sample_, p);
      for (int64_t l = 0; l < sample_.hidden_layers; ++l) {
        const MaskedMlpLayer& layer = sample_.layers[l];
        units(layer, masked_mlp_units(sample_, l, p), values_ + layer.offset);
        __syncwarp();
      }
      units(sample_.layers[sample_.hidden_layers], rows, parameters_ - rows.begin);
      __syncwarp();
      const T x = draw(p, static_cast<int>(rows.end - rows.begin), log_prob);
      const int64_t own = columns.end - columns.begin;
      const T absent = is_category(x, own) ? T(0) : not_a_number<T>;
      for (int64_t c = columns.begin + lane_; c < columns.end; c += kWarpSize) {
        values_[c] = own == 1 ? x : x == static_cast<T>(c - columns.begin) ? T(1) : absent;
      }
      if (lane_ == 0) draws_.values_of<T>(row_)[p] = x;
      __syncwarp();
    }
    if (lane_ == 0) draws_.log_prob[row_] = log_prob;
  }

 private:
  // Adds what `units` <= Units units, from `unit` on, get from a term; each lane has a share of the inputs.
  template <int Units>
  __device__ __forceinline__ void add_term(const MaskedMlpTerm& term, int unit, int units, T (&sums)[Units]) const {
    const int64_t inputs = masked_mlp_width(sample_, term.source);
    const T* const below = values_ + masked_mlp_offset(sample_, term.source);
    const S* rows[Units];
    int extents[Units];
#pragma unroll
    for (int u = 0; u < Units; ++u) {
      const int at = unit + min(u, units - 1);
      rows[u] = static_cast<const S*>(term.weight) + at * inputs;
      extents[u] = term.extents[at];
    }
    for (int k = lane_; k < extents[Units - 1]; k += kWarpSize) {
      const T value = below[k];
#pragma unroll
      for (int u = 0; u < Units; ++u) {
        if (k < extents[u]) sums[u] = fma(to_compute(rows[u][k]), value, sums[u]);
      }
    }
  }

  // The value of a unit, from the sum of its terms.
  __device__ __forceinline__ T finish(const MaskedMlpLayer& layer, int unit, T sum) const {
    if (layer.bias != nullptr) sum += static_cast<const T*>(layer.bias)[row_ * layer.bias_stride + unit];
    if (layer.add >= 0) sum += values_[masked_mlp_offset(sample_, layer.add) + unit];
    return layer.activated ? activate(sample_.activation, sum) : sum;
  }

  // Writes own[u] for the units of a range.
  __device__ __forceinline__ void units(const MaskedMlpLayer& layer, MaskedMlpRange range, T* own) const {
    const int begin = static_cast<int>(range.begin), end = static_cast<int>(range.end);
    if (layer.terms == 0) {
      for (int unit = begin + lane_; unit < end; unit += kWarpSize) own[unit] = finish(layer, unit, T(0));
      return;
    }
    for (int unit = begin; unit < end; unit += kUnitsTogether) {
      const int count = min(kUnitsTogether, end - unit);
      T sums[kUnitsTogether] = {};
      for (int t = 0; t < layer.terms; ++t) add_term<kUnitsTogether>(layer.term[t], unit, count, sums);
      T own_sum = T(0);
#pragma unroll
      for (int u = 0; u < kUnitsTogether; ++u) {
        const T sum = warp_sum(sums[u]);
        own_sum = lane_ == u ? sum : own_sum;
      }
      if (lane_ < count) own[unit + lane_] = finish(layer, unit + lane_, own_sum);
    }
  }

  __device__ __forceinline__ T draw(int64_t p, int rows, double& log_prob) const {
    if (const T* known = draws_.known_value<T>(row_, p)) return *known;
    if (draws_.head.kind == HeadKind::transform) return transform(p, rows, log_prob);
    const T x = draw_value(draws_, row_, p, parameters_, rows, draw_noise(draws_, row_, p));
    log_prob += drawn_log_prob(draws_, p, parameters_, rows, x);
    return x;
  }

  // One lane computes it, because it overwrites the parameters.
  __device__ __forceinline__ T transform(int64_t p, int rows, double& log_prob) const {
    Transformed<T> result = {};
    if (lane_ == 0) result = transformed(sample_.transform, parameters_, rows, draws_.noise<T>(row_, p));
    log_prob += static_cast<double>(result.log_derivative);
    return __shfl_sync(kFullMask, result.x, 0);
  }

  const MaskedMlpSample& sample_;
  const Draws& draws_;
  const int64_t row_;
  T* const values_;
  T* const parameters_;
  const int lane_;
};

// Per sample: the columns and units, then the parameters of one variable.
struct Places {
  int64_t features, parameters;
  bool in_shared;  // otherwise the features are in the state tensor and the parameters in scratch

  static Places of(const MaskedMlpSample& sample) {
    Places places;
    places.features = sample.features;
    // If variables differ, only the device knows the largest number of parameters.
    const int64_t rows = sample.layers[sample.hidden_layers].units;
    places.parameters = sample.out_offsets != nullptr ? rows : rows / sample.draws.variables;
    places.in_shared = kSamplesPerBlock * places.bytes(sample.storage, places.features + places.parameters) <=
                       kMostSharedBytes;
    return places;
  }
  static int64_t bytes(ScalarType storage, int64_t count) { return count * (storage == ScalarType::float64 ? 8 : 4); }
};

template <typename S>
__global__ void __launch_bounds__(kSamplesPerBlock* kWarpSize)
    masked_mlp_sample_kernel(const MaskedMlpSample sample, Places places, Compute<S>* scratch) {
  using T = Compute<S>;
  AR_FAST_DYNAMIC_SHARED(T, shared);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = lane_id();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kSamplesPerBlock + warp, features = places.features;
  if (row >= sample.draws.batch) return;  // this is a whole warp, and no barrier of the block follows
  T* const state = static_cast<T*>(sample.state) + row * features;
  T* const values = places.in_shared ? shared + warp * (features + places.parameters) : state;
  T* const parameters = places.in_shared ? values + features : scratch + row * places.parameters;
  if (places.in_shared) {
    for (int64_t f = lane; f < features; f += kWarpSize) values[f] = state[f];
    __syncwarp();
  }
  Sampler<S>(sample, row, values, parameters).run();
  if (places.in_shared) {
    __syncwarp();
    for (int64_t f = lane; f < features; f += kWarpSize) state[f] = values[f];
  }
}

template <typename S>
cudaError_t run(const MaskedMlpSample& sample, void* scratch, cudaStream_t stream) {
  const Places places = Places::of(sample);
  const int64_t shared = kSamplesPerBlock * Places::bytes(sample.storage, places.features + places.parameters);
  const auto blocks = static_cast<unsigned>((sample.draws.batch + kSamplesPerBlock - 1) / kSamplesPerBlock);
  return launch({"masked_mlp_sample", blocks, kSamplesPerBlock * kWarpSize,
                 places.in_shared ? static_cast<size_t>(shared) : 0, stream},
                masked_mlp_sample_kernel<S>, sample, places, static_cast<Compute<S>*>(scratch));
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

int64_t masked_mlp_sample_cuda_scratch(const MaskedMlpSample& sample) {
  const auto places = cuda::Places::of(sample);
  return places.in_shared ? 0 : cuda::Places::bytes(sample.storage, sample.draws.batch * places.parameters);
}

cudaError_t masked_mlp_sample_cuda(const MaskedMlpSample& sample, void* scratch, cudaStream_t stream) {
  return cuda::dispatch_storage(sample.storage, [&](auto storage) {
    return cuda::run<decltype(storage)>(sample, scratch, stream);
  });
}

}  // namespace ar_fast
