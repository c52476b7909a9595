// The states before each tile of positions: a_p = in_bias + sum of x_i in_weight[i] over the positions before p.
//
// One thread computes one hidden unit of kRows rows of the batch, so that each element of in_weight is read once for
// all of them. There are no activations: 2 flops per (row, position, unit), and in_weight is read from L2 once per
// kRows rows: B D H / 8 * 4 bytes. For 784 x 500 x 128 that is 25 MB, about 5 us. Reading 8 positions ahead hides the
// latency (the inner loop is unrolled).
#include "nade_device.h"

namespace ar_fast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 8;
constexpr int kStep = 32;  // positions whose inputs are in shared memory

template <typename S, bool gathers>
__global__ void __launch_bounds__(kThreads, 4)
    nade_states_kernel(NadeArguments<S> arguments, int start, int stop, int tile,
                       const Compute<S>* __restrict__ initial, int64_t initial_stride,
                       Compute<S>* __restrict__ states) {
  using T = Compute<S>;
  AR_FAST_SHARED(T, factors, [kStep][kRows]);
  AR_FAST_SHARED(int64_t, rows, [kStep][gathers ? kRows : 1]);
  const int t = static_cast<int>(threadIdx.x), unit = static_cast<int>(blockIdx.y) * kThreads + t;
  const int first_row = static_cast<int>(blockIdx.x) * kRows, hidden = arguments.hidden, batch = arguments.batch;
  // A thread past the last unit computes the last one again and stores nothing.
  const bool has_unit = unit < hidden;
  const S* const column = arguments.in_weight + (has_unit ? unit : hidden - 1);
  T a[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    a[r] = has_unit && first_row + r < batch ? initial[(first_row + r) * initial_stride + unit] : T(0);
  }
  for (int first = start; first < stop; first += kStep) {
    __syncthreads();
    for (int i = t; i < kStep * kRows; i += kThreads) {
      const int p = i / kRows, r = i % kRows;
      const bool inside = first + p < stop && first_row + r < batch;
      const int variable = first + p < stop ? arguments.variable_at(first + p) : 0;
      factors[p][r] = inside ? arguments.added(first_row + r, variable).factor : T(0);
      if (gathers || r == 0) rows[p][gathers ? r : 0] = inside ? arguments.added(first_row + r, variable).row : 0;
    }
    __syncthreads();
#pragma unroll 8
    for (int p = 0; p < kStep; ++p) {
      const int position = first + p;
      if (position < stop && (position - start) % tile == 0) {
        T* out = states + static_cast<int64_t>((position - start) / tile) * batch * hidden;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (has_unit && first_row + r < batch) out[static_cast<int64_t>(first_row + r) * hidden + unit] = a[r];
        }
      }
      T w = gathers ? T(0) : to_compute(column[rows[p][0] * hidden]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const T x = factors[p][r];
        if (gathers) w = to_compute(column[rows[p][gathers ? r : 0] * hidden]);
        a[r] = x != T(0) ? fma(x, w, a[r]) : a[r];
      }
    }
  }
}

}  // namespace

template <typename S>
cudaError_t nade_states(const NadeArguments<S>& arguments, const NadeTiles& tiles, const Compute<S>* initial,
                        int64_t initial_stride, Compute<S>* states, cudaStream_t stream) {
  if (arguments.batch == 0 || arguments.hidden == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(ceil_divide(arguments.batch, kRows)),
                  static_cast<unsigned>(ceil_divide(arguments.hidden, kThreads)));
  const bool gathers = arguments.categories != nullptr || arguments.in_offsets != nullptr;
  return launch({"nade_states", grid, kThreads, 0, stream},
                gathers ? nade_states_kernel<S, true> : nade_states_kernel<S, false>, arguments, tiles.start,
                tiles.stop, tiles.tile, initial, initial_stride, states);
}

#define AR_FAST_INSTANTIATE(S)                                                                               \
  template cudaError_t nade_states<S>(const NadeArguments<S>&, const NadeTiles&, const Compute<S>*, int64_t, \
                                      Compute<S>*, cudaStream_t);
AR_FAST_INSTANTIATE(float)
AR_FAST_INSTANTIATE(float16)
AR_FAST_INSTANTIATE(bfloat16)
AR_FAST_INSTANTIATE(double)
#undef AR_FAST_INSTANTIATE

}  // namespace ar_fast::cuda
