// ARMLP sampling: one persistent block of 8 warps per sample evaluates one network after the other.
//
// The threads of a block split the hidden units of a network and, if there are more threads than units, its inputs too.
// Neighbouring threads have neighbouring units, so that a weight row is read in one piece; the row of a zero input is
// not read. There are four barriers per position: shares of the pre-activations, hidden units, parameters, value.
// Warp 0 draws; the last warp computes log p of the value while the others continue.
//
// The reduction order depends only on H, so a row does not depend on the batch it is drawn in.
#include "armlp_cuda.h"
#include "draws_device.h"
#include "nade_device.h"

namespace ar_fast::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

// The memory of a block: values by position, hidden units, parameters of one variable.
template <typename T>
struct Memory {
  T *values, *hidden, *parameters;

  __device__ __forceinline__ Memory(const ArmlpSample& sample, T* base)
      : values(base), hidden(base + sample.draws.variables), parameters(hidden + sample.hidden) {}
};

int64_t memory_elements(const ArmlpSample& sample) {
  // If variables differ, only the device knows the largest number of parameters.
  const int64_t most = sample.offsets != nullptr ? sample.out_rows : sample.out_rows / sample.draws.variables;
  return sample.draws.variables + sample.hidden + most;
}

// Threads that split the hidden units; the others of the block take other inputs of the same units.
__host__ __device__ inline int unit_threads(int64_t hidden) {
  int threads = 1;
  while (threads < kThreads && threads < hidden) threads *= 2;
  return threads;
}

template <typename S>
class Sampler {
 public:
  using T = Compute<S>;

  __device__ Sampler(const ArmlpSample& sample, int64_t row, const Memory<T>& memory, T (&shares)[kThreads])
      : sample_(sample), draws_(sample.draws), row_(row), m_(memory), shares_(shares), lane_(lane_id()),
        warp_(static_cast<int>(threadIdx.x) / kWarpSize), gathers_(sample.draws.head.kind == HeadKind::categorical) {}

  __device__ void run() {
    const int start = static_cast<int>(draws_.start), stop = static_cast<int>(draws_.stop);
    T* const state = static_cast<T*>(sample_.state) + row_ * draws_.variables;
    T* const out = draws_.values_of<T>(row_);
    for (int p = static_cast<int>(threadIdx.x); p < start; p += kThreads) m_.values[p] = state[p];
    NoiseAhead noise;
    double log_prob = 0;
    for (int p = start; p < stop; ++p) {
      const bool known = draws_.is_known(row_, p);
      const int64_t first = first_parameter(p);
      const int count = static_cast<int>(first_parameter(p + 1) - first);
      if (warp_ == 0) noise.look(draws_, row_, p);
      __syncthreads();  // the values before p are written
      if (!known) {
        hidden_units(p);
        __syncthreads();
        parameters(first, count);
        __syncthreads();
      }
      if (warp_ == 0) {
        const T x = draw_value(draws_, row_, p, m_.parameters, count, noise.here());
        if (lane_ == 0) {
          m_.values[p] = x;
          state[p] = x;
          out[p] = x;
        }
      }
      __syncthreads();
      if (warp_ == kWarps - 1 && !known) log_prob += drawn_log_prob(draws_, p, m_.parameters, count, m_.values[p]);
    }
    if (threadIdx.x == kThreads - 1) draws_.log_prob[row_] = log_prob;
  }

 private:
  __device__ __forceinline__ int64_t first_parameter(int position) const {
    return sample_.offsets != nullptr ? sample_.offsets[position] : position * (sample_.out_rows / draws_.variables);
  }

  __device__ __forceinline__ bool gathers(int position) const {
    return gathers_ ||
           (sample_.in_offsets != nullptr && sample_.in_offsets[position + 1] - sample_.in_offsets[position] > 1);
  }
  __device__ __forceinline__ int64_t first_input(int position) const {
    if (sample_.in_offsets != nullptr) return sample_.in_offsets[position];
    return gathers_ ? first_parameter(position) : position;
  }

  __device__ __forceinline__ void hidden_units(int p) const {
    const int hidden = static_cast<int>(sample_.hidden), threads = unit_threads(hidden), shares = kThreads / threads;
    const int block = p / static_cast<int>(armlp_block), t = static_cast<int>(threadIdx.x);
    const int64_t networks = min(armlp_block, draws_.variables - block * armlp_block);
    const S* const weight = static_cast<const S*>(sample_.in_weight) +
                            (sample_.block_starts[block] + p % armlp_block) * hidden;
    const T* const bias = static_cast<const T*>(sample_.in_bias) + row_ * sample_.in_bias_stride +
                          static_cast<int64_t>(p) * hidden;
    for (int u0 = 0; u0 < hidden; u0 += threads) {
      const int u = u0 + t % threads;
      T sum = T(0);
      for (int j = t / threads; u < hidden && j < p; j += shares) {
        const T value = m_.values[j];
        const bool gathered = gathers(j);
        if (!gathered && value == T(0)) continue;
        const bool category = gathered && is_category(value, first_input(j + 1) - first_input(j));
        const int64_t input = first_input(j) + (category ? static_cast<int64_t>(value) : 0);
        const T factor = !gathered ? value : category ? T(1) : not_a_number<T>;
        sum = fma(factor, to_compute(weight[input * networks * hidden + u]), sum);
      }
      shares_[t] = sum;
      __syncthreads();
      if (t < threads && u < hidden) {
        T own[1] = {bias[u]}, active[1];
        for (int s = 0; s < shares; ++s) own[0] += shares_[t + s * threads];
        activate(sample_.activation, T(1), own, active);
        m_.hidden[u] = active[0];
      }
      if (u0 + threads < hidden) __syncthreads();
    }
  }

  __device__ __forceinline__ void parameters(int64_t first, int count) const {
    const int hidden = static_cast<int>(sample_.hidden);
    for (int k = warp_; k < count; k += kWarps) {
      const S* const weight = static_cast<const S*>(sample_.out_weight) + (first + k) * hidden;
      T sum = T(0);
      for (int u = lane_; u < hidden; u += kWarpSize) sum = fma(to_compute(weight[u]), m_.hidden[u], sum);
      sum = warp_sum(sum);
      if (lane_ == 0) m_.parameters[k] = static_cast<const T*>(sample_.out_bias)[first + k] + sum;
    }
  }

  const ArmlpSample& sample_;
  const Draws& draws_;
  const int64_t row_;
  const Memory<T> m_;
  T (&shares_)[kThreads];
  const int lane_, warp_;
  const bool gathers_;
};

// Takes the rows from first_row on; scratch null means shared memory. Without a least number of blocks per SM, the
// compiler settles on 48 registers for sm_90a and spills.
template <typename S>
__global__ void __launch_bounds__(kThreads, 1)
    armlp_sample_kernel(ArmlpSample sample, int64_t first_row, Compute<S>* scratch, int64_t elements) {
  using T = Compute<S>;
  AR_FAST_DYNAMIC_SHARED(T, shared);
  AR_FAST_SHARED(T, shares, [kThreads]);
  T* const base = scratch != nullptr ? scratch + blockIdx.x * elements : shared;
  Sampler<S>(sample, first_row + blockIdx.x, Memory<T>(sample, base), shares).run();
}

template <typename S>
cudaError_t run(const ArmlpSample& sample, void* scratch, cudaStream_t stream) {
  const ArmlpSampleCut cut = armlp_sample_cuda_cut(sample);
  for (int64_t first = 0; first < sample.draws.batch; first += cut.rows) {
    const cudaError_t error =
        launch({"armlp_sample", static_cast<unsigned>(std::min(cut.rows, sample.draws.batch - first)), kThreads,
                static_cast<size_t>(cut.shared_bytes), stream},
               armlp_sample_kernel<S>, sample, first, cut.in_shared ? nullptr : static_cast<Compute<S>*>(scratch),
               memory_elements(sample));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

ArmlpSampleCut armlp_sample_cuda_cut(const ArmlpSample& sample) {
  const int64_t bytes = cuda::memory_elements(sample) * (sample.storage == ScalarType::float64 ? 8 : 4);
  if (bytes <= cuda::kMostSharedBytes) return {true, sample.draws.batch, bytes, 0};
  const int64_t rows = std::min(sample.draws.batch, std::max<int64_t>(1, cuda::kScratchBudget / bytes));
  return {false, rows, 0, rows * bytes};
}

cudaError_t armlp_sample_cuda(const ArmlpSample& sample, void* scratch, cudaStream_t stream) {
  return cuda::dispatch_storage(sample.storage, [&](auto storage) {
    return cuda::run<decltype(storage)>(sample, scratch, stream);
  });
}

}  // namespace ar_fast
