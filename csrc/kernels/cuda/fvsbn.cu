// FVSBN sampling: one persistent block of 8 warps per sample. The warps split the columns that a drawn value is added
// to. No sum is over threads, so there is no reduction between one value and the next.
//
// Bernoulli: the next 32 positions are drawn at once, as if zeros came out, and the block continues after the first
// nonzero value. This is exact, since a zero changes nothing. A one costs a weight row, 128 bits per load, and two
// barriers; 32 zeros cost a vote. Other heads: warp 0 draws, and every nonzero value costs the same. log p of all drawn
// variables is computed at the end, in parallel: their parameters are still there.
//
// The parameters are in shared memory if they fit, else in the state tensor.
#include "fvsbn_cuda.h"
#include "draws_device.h"

namespace ar_fast::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

template <typename S>
class Sampler {
 public:
  using T = Compute<S>;

  // parameters: the [R_out] parameters of the row.
  __device__ Sampler(const FvsbnSample& sample, int64_t row, T* parameters, bool aligned)
      : sample_(sample), draws_(sample.draws), row_(row), parameters_(parameters), aligned_(aligned), lane_(lane_id()),
        warp_(static_cast<int>(threadIdx.x) / kWarpSize) {}

  __device__ void run(double (&warp_sums)[kWarps], T& drawn) {
    draws_.head.kind == HeadKind::bernoulli ? draw_bernoulli() : draw(drawn);
    __syncthreads();
    const double sum = draws_.head.kind == HeadKind::bernoulli ? bernoulli_log_probs() : log_probs();
    if (lane_ == 0) warp_sums[warp_] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    double total = 0;
    for (int w = 0; w < kWarps; ++w) total += warp_sums[w];
    draws_.log_prob[row_] = total;
  }

 private:
  __device__ __forceinline__ int place(int position) const {
    return static_cast<int>(draws_.variables) - 1 - position;
  }
  __device__ __forceinline__ int64_t first_column(int place) const {
    return sample_.offsets != nullptr ? sample_.offsets[place] : place * (sample_.out_rows / draws_.variables);
  }
  __device__ __forceinline__ bool gathers(int place) const {
    return draws_.head.kind == HeadKind::categorical ||
           (sample_.in_offsets != nullptr && sample_.in_offsets[place + 1] - sample_.in_offsets[place] > 1);
  }
  __device__ __forceinline__ int64_t first_row(int place) const {
    if (sample_.in_offsets != nullptr) return sample_.in_offsets[place];
    return draws_.head.kind == HeadKind::categorical ? first_column(place) : place;
  }
  // Of a place that gathers.
  __device__ __forceinline__ int64_t input_rows(int place) const {
    return sample_.in_offsets != nullptr ? sample_.in_offsets[place + 1] - sample_.in_offsets[place]
                                         : first_column(place + 1) - first_column(place);
  }
  __device__ __forceinline__ T* value(int position) const { return draws_.values_of<T>(row_) + position; }

  // parameters[0, end) += x times a weight row, computed by the whole block.
  __device__ __forceinline__ void push(int64_t weight_row, T x, int64_t end) const {
    constexpr int size = Vector<S>::size;
    const S* const weight = static_cast<const S*>(sample_.weight) + weight_row * sample_.out_rows;
    for (int64_t c = static_cast<int64_t>(threadIdx.x) * size; c < end; c += kThreads * size) {
      if (aligned_ && c + size <= end) {
        const Vector<S> loaded = load_vector(weight + c);
#pragma unroll
        for (int i = 0; i < size; ++i) parameters_[c + i] = fma(x, to_compute(loaded.values[i]), parameters_[c + i]);
      } else {
        for (int64_t i = c; i < c + size && i < end; ++i) {
          parameters_[i] = fma(x, to_compute(weight[i]), parameters_[i]);
        }
      }
    }
  }

  __device__ void draw_bernoulli() const {
    const T temperature = static_cast<T>(draws_.temperature);
    const int stop = static_cast<int>(draws_.stop);
    for (int first = static_cast<int>(draws_.start); first < stop; first += kWarpSize) {
      // Lane l holds position first + l; all warps do the same.
      const int position = first + lane_;
      const bool inside = position < stop;
      const T* const known = inside ? draws_.known_value<T>(row_, position) : nullptr;
      const T taken = known != nullptr ? *known : T(0);
      const double uniform = draw_uniform(draws_, row_, inside ? position : stop - 1, 0);
      T x = T(0);
      for (int done = 0; done < kWarpSize;) {
        if (inside && lane_ >= done) {
          const T logit = parameters_[place(position)];
          x = known != nullptr ? taken : bernoulli_draw(uniform, logit, temperature);
        }
        const uint32_t changing = __ballot_sync(kFullMask, lane_ >= done && x != T(0));
        if (changing == 0) break;
        const int next = __ffs(static_cast<int>(changing)) - 1;
        const T pushed = __shfl_sync(kFullMask, x, next);
        __syncthreads();  // all warps have read the parameters
        push(place(first + next), pushed, place(first + next));
        __syncthreads();
        done = next + 1;
      }
      if (warp_ == 0 && inside) *value(position) = x;
    }
  }

  __device__ void draw(T& drawn) const {
    const int start = static_cast<int>(draws_.start), stop = static_cast<int>(draws_.stop);
    NoiseAhead noise;
    for (int p = start; p < stop; ++p) {
      const int64_t column = first_column(place(p));
      if (warp_ == 0) {
        noise.look(draws_, row_, p);
        const int rows = static_cast<int>(first_column(place(p) + 1) - column);
        const T x = draw_value(draws_, row_, p, parameters_ + column, rows, noise.here());
        if (lane_ == 0) {
          drawn = x;
          *value(p) = x;
        }
      }
      __syncthreads();
      const T x = drawn;
      if (gathers(place(p))) {
        const bool category = is_category(x, input_rows(place(p)));
        push(first_row(place(p)) + (category ? static_cast<int64_t>(x) : 0), category ? T(1) : not_a_number<T>, column);
      } else if (x != T(0)) {
        push(first_row(place(p)), x, column);
      }
      __syncthreads();
    }
  }

  // The sums of a warp's share of the drawn variables, in every lane.
  __device__ double bernoulli_log_probs() const {
    double sum = 0;
    for (int p = static_cast<int>(draws_.start + threadIdx.x); p < draws_.stop; p += kThreads) {
      if (!draws_.is_known(row_, p)) sum += static_cast<double>(bernoulli_log_prob(parameters_[place(p)], *value(p)));
    }
    return warp_sum(sum);
  }

  __device__ double log_probs() const {
    double sum = 0;
    for (int p = static_cast<int>(draws_.start) + warp_; p < draws_.stop; p += kWarps) {
      if (draws_.is_known(row_, p)) continue;
      const int64_t column = first_column(place(p));
      const int rows = static_cast<int>(first_column(place(p) + 1) - column);
      sum += drawn_log_prob(draws_, p, parameters_ + column, rows, *value(p));
    }
    return sum;
  }

  const FvsbnSample& sample_;
  const Draws& draws_;
  const int64_t row_;
  T* const parameters_;
  const bool aligned_;
  const int lane_, warp_;
};

// A least number of blocks per SM lets the compiler use as many registers as it needs (armlp.cu).
template <typename S>
__global__ void __launch_bounds__(kThreads, 1)
    fvsbn_sample_kernel(FvsbnSample sample, bool in_shared, bool aligned) {
  using T = Compute<S>;
  AR_FAST_DYNAMIC_SHARED(T, shared);
  AR_FAST_SHARED(double, warp_sums, [kWarps]);
  AR_FAST_SHARED(T, drawn, [1]);
  const int64_t row = blockIdx.x;
  T* const state = static_cast<T*>(sample.state) + row * sample.out_rows;
  if (in_shared) {
    for (int64_t c = threadIdx.x; c < sample.out_rows; c += kThreads) shared[c] = state[c];
    __syncthreads();
  }
  Sampler<S>(sample, row, in_shared ? shared : state, aligned).run(warp_sums, drawn[0]);
  if (in_shared) {
    __syncthreads();
    for (int64_t c = threadIdx.x; c < sample.out_rows; c += kThreads) state[c] = shared[c];
  }
}

int64_t state_bytes(const FvsbnSample& sample) {
  return sample.out_rows * (sample.storage == ScalarType::float64 ? 8 : 4);
}

template <typename S>
cudaError_t run(const FvsbnSample& sample, cudaStream_t stream) {
  const bool in_shared = fvsbn_sample_in_shared_memory(sample);
  const bool aligned = vectors_fit(static_cast<const S*>(sample.weight), sample.out_rows);
  return launch({"fvsbn_sample", static_cast<unsigned>(sample.draws.batch), kThreads,
                 in_shared ? static_cast<size_t>(state_bytes(sample)) : 0, stream},
                fvsbn_sample_kernel<S>, sample, in_shared, aligned);
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

bool fvsbn_sample_in_shared_memory(const FvsbnSample& sample) {
  return cuda::state_bytes(sample) <= cuda::kMostSharedBytes;
}

cudaError_t fvsbn_sample_cuda(const FvsbnSample& sample, cudaStream_t stream) {
  return cuda::dispatch_storage(sample.storage, [&](auto storage) {
    return cuda::run<decltype(storage)>(sample, stream);
  });
}

}  // namespace ar_fast
