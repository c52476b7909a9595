// Sampling of an orderless NADE of several layers: one persistent block for a few rows of the batch, which goes through
// the positions and waits for no other block. The weights pass from the L2 cache at every position, once for all rows
// of a block; the hidden units of two layers lie in shared memory by turns.
#include "deep_nade_cuda.h"

#include <algorithm>

#include "dense_products.h"
#include "draws_device.h"

namespace ar_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRows = kBatchRows;  // of a block: what a warp's product takes at a time

template <typename S>
class DeepNadeBlock {
 public:
  using T = Compute<S>;

  // hidden: [2, kRows, padded]; parameters: [kRows, most_parameters]; drawn: [kRows], in shared memory.
  __device__ DeepNadeBlock(const DeepNadeSample& sample, int padded, T* hidden, T* parameters, T* drawn)
      : s_(sample), draws_(sample.draws), padded_(padded), thread_(static_cast<int>(threadIdx.x)),
        warp_(thread_ / kWarpSize), first_row_(static_cast<int64_t>(blockIdx.x) * kRows),
        rows_(static_cast<int>(min(static_cast<int64_t>(kRows), sample.draws.batch - first_row_))), hidden_(hidden),
        parameters_(parameters), drawn_(drawn) {}

  __device__ void run() {
    double log_prob = 0;             // of row first_row_ + warp_
    for (int64_t p = draws_.start; p < draws_.stop; ++p) {
      if (any_draws(p)) {
        activate_state();
        __syncthreads();
        T *from = hidden_, *to = hidden_ + kRows * padded_;
        for (int l = 1; l <= static_cast<int>(s_.layers); ++l) {
          layer(l, from, to);
          T* const above = to;
          to = from;
          from = above;
        }
        const int64_t variable = draws_.variable(p), first = s_.first_out_row(variable);
        const int count = static_cast<int>(s_.first_out_row(variable + 1) - first);
        products(s_.out_weight, first, count, static_cast<int>(s_.units(s_.layers)), from, parameters_, count);
        __syncthreads();
        draw(p, first, count, log_prob);
        __syncthreads();
        observe(p, variable);
      } else {
        draw(p, 0, 0, log_prob);
      }
      __syncthreads();
    }
    if (warp_ < rows_ && lane_id() == 0) draws_.log_prob[first_row_ + warp_] = log_prob;
  }

 private:
  __device__ __forceinline__ bool any_draws(int64_t p) const {
    for (int r = 0; r < rows_; ++r) {
      if (!draws_.is_known(first_row_ + r, p)) return true;
    }
    return false;
  }

  __device__ __forceinline__ int whole_vectors(int units) const {
    constexpr int size = Vector<S>::size;
    return (units + size - 1) / size * size;
  }

  // The first hidden layer, with zeros up to a whole vector.
  __device__ void activate_state() const {
    const int units = static_cast<int>(s_.hidden), whole = whole_vectors(units);
    const T* const state = static_cast<const T*>(s_.state) + first_row_ * units;
    for (int i = thread_; i < rows_ * whole; i += kThreads) {
      const int r = i / whole, u = i % whole;
      hidden_[r * padded_ + u] = u < units ? activate(s_.activation, state[r * units + u]) : T(0);
    }
  }

  __device__ void products(const void* weight, int64_t first, int count, int inputs, const T* x, T* out,
                           int stride) const {
    const S* const rows = static_cast<const S*>(weight) + first * inputs;
    const auto weight_at = [&](int w) { return rows + static_cast<int64_t>(w) * inputs; };
    const auto x_at = [&](int r) { return x + r * padded_; };
    dense_products<S, false>(warp_, kWarps, inputs, count, rows_, vectors_fit(rows, inputs), weight_at, x_at, out,
                             stride);
  }

  __device__ void layer(int l, const T* from, T* to) const {
    const DeepNadeLayer& own = s_.layer[l - 1];
    const int units = static_cast<int>(own.units), whole = whole_vectors(units);
    products(own.weight, 0, units, static_cast<int>(s_.units(l - 1)), from, to, padded_);
    __syncthreads();
    const T* const bias = static_cast<const T*>(own.bias);
    for (int i = thread_; i < rows_ * whole; i += kThreads) {
      const int u = i % whole;
      T& unit = to[i / whole * padded_ + u];
      unit = u < units ? activate(s_.activation, unit + bias[u]) : T(0);
    }
    __syncthreads();
  }

  // A row by each of the first warps. The parameters come without out_bias.
  __device__ void draw(int64_t p, int64_t first, int count, double& log_prob) const {
    if (warp_ >= rows_) return;
    const int64_t row = first_row_ + warp_;
    T value;
    if (const T* const known = draws_.known_value<T>(row, p)) {
      value = *known;
    } else {
      T* const parameters = parameters_ + warp_ * count;
      const T* const bias = static_cast<const T*>(s_.out_bias) + first;
      for (int k = lane_id(); k < count; k += kWarpSize) parameters[k] += bias[k];
      __syncwarp();
      value = draw_value(draws_, row, p, parameters, count, draw_noise(draws_, row, p));
      log_prob += drawn_log_prob(draws_, p, parameters, count, value);
    }
    if (lane_id() == 0) {
      drawn_[warp_] = value;
      draws_.values_of<T>(row)[p] = value;
    }
  }

  // What was drawn enters the state.
  __device__ void observe(int64_t p, int64_t variable) const {
    const int units = static_cast<int>(s_.hidden);
    const bool gathers = s_.gathers_row(variable);
    const int64_t first = s_.first_in_row(variable), categories = s_.first_in_row(variable + 1) - first;
    const S* const mask = static_cast<const S*>(s_.mask_weight) + variable * units;
    for (int i = thread_; i < rows_ * units; i += kThreads) {
      const int r = i / units, u = i % units;
      const int64_t row = first_row_ + r;
      if (draws_.is_known(row, p)) continue;
      const T value = drawn_[r];
      const bool category = gathers && is_category(value, categories);
      const T factor = !gathers ? value : category ? T(1) : not_a_number<T>;
      const S* const weight =
          static_cast<const S*>(s_.in_weight) + (first + (category ? static_cast<int64_t>(value) : 0)) * units;
      T& a = static_cast<T*>(s_.state)[row * units + u];
      a += fma(factor, to_compute(weight[u]), to_compute(mask[u]));
    }
  }

  const DeepNadeSample& s_;
  const Draws& draws_;
  const int padded_, thread_, warp_;
  const int64_t first_row_;
  const int rows_;
  T *const hidden_, *const parameters_, *const drawn_;
};

template <typename S>
__global__ void __launch_bounds__(kThreads, 1)
    deep_nade_sample_kernel(const DeepNadeSample sample, int padded, Compute<S>* parameters, Compute<S>* hidden) {
  using T = Compute<S>;
  AR_FAST_DYNAMIC_SHARED(T, shared);
  AR_FAST_SHARED(T, drawn, [kRows]);
  T* const own = hidden == nullptr ? shared : hidden + static_cast<int64_t>(blockIdx.x) * 2 * kRows * padded;
  DeepNadeBlock<S>(sample, padded, own, parameters + blockIdx.x * kRows * sample.most_parameters, drawn).run();
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

DeepNadeCut deep_nade_cuda_cut(const DeepNadeSample& sample) {
  const int64_t compute = sample.storage == ScalarType::float64 ? 8 : 4;
  int64_t widest = 0;
  for (int64_t l = 0; l <= sample.layers; ++l) widest = std::max(widest, sample.units(l));
  DeepNadeCut cut{};
  cut.rows = cuda::kRows;
  cut.blocks = (sample.draws.batch + cut.rows - 1) / cut.rows;
  cut.padded = (widest + 7) / 8 * 8;
  const int64_t hidden = 2 * cut.rows * cut.padded * compute;
  cut.in_shared = hidden <= cuda::kMostSharedBytes;
  cut.shared_bytes = cut.in_shared ? hidden : 0;
  // The hidden units come first, so that they are aligned.
  cut.scratch_bytes =
      (cut.in_shared ? 0 : cut.blocks * hidden) + cut.blocks * cut.rows * sample.most_parameters * compute;
  return cut;
}

cudaError_t deep_nade_sample_cuda(const DeepNadeSample& sample, const DeepNadeCut& cut, void* scratch,
                                  cudaStream_t stream) {
  return cuda::dispatch_storage(sample.storage, [&](auto storage) {
    using S = decltype(storage);
    using T = cuda::Compute<S>;
    T* const hidden = cut.in_shared ? nullptr : static_cast<T*>(scratch);
    T* const parameters =
        static_cast<T*>(scratch) + (cut.in_shared ? 0 : cut.blocks * 2 * cut.rows * cut.padded);
    return cuda::launch({"deep_nade_sample", static_cast<unsigned>(cut.blocks), cuda::kThreads,
                         static_cast<size_t>(cut.shared_bytes), stream},
                        cuda::deep_nade_sample_kernel<S>, sample, static_cast<int>(cut.padded), parameters, hidden);
  });
}

}  // namespace ar_fast
