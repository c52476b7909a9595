// The univariate transforms of a flow's density: a warp takes a row, a lane its variables one after the other.
//
// Designed for the memory bound: x, y and the parameters of an affine transform pass through once, and a warp's lanes
// read side by side where a row of parameters is by parameter, or two numbers apart. A spline's parameters are copied to
// scratch of its own, where a lane walks over them several times; they lie in L1 by then. log_det is the sum of a lane's
// variables in their order, then over the lanes in a fixed order.
#include "univariate_transform_cuda.h"

#include "runtime.h"

#include <algorithm>

namespace ar_fast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
// Blocks that an SM holds at a time: with more, the divisions of a spline would spill registers.
constexpr int kBlocks = 3;
// A warp takes further rows if there are more than a grid of this many blocks can take.
constexpr int64_t kMostBlocks = int64_t{1} << 30;

// The row of x, of parameters and of results that a warp works on.
template <typename T>
struct Row {
  const T* x;
  const T* parameters;
  int64_t first;  // of the row's numbers

  __device__ __forceinline__ Row(const UnivariateTransform& own, int64_t row)
      : x(static_cast<const T*>(own.x) + row * own.x_stride),
        parameters(static_cast<const T*>(own.parameters) + row * own.variables * own.count),
        first(row * own.variables) {}
  __device__ __forceinline__ T parameter(const UnivariateTransform& own, int64_t variable, int64_t k) const {
    return parameters[univariate_parameter(own, variable, k)];
  }
};

__device__ __forceinline__ int64_t first_row() {
  return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
}
__device__ __forceinline__ int64_t rows_of_grid() { return static_cast<int64_t>(gridDim.x) * kWarps; }

template <typename T, bool kAffine>
__global__ void __launch_bounds__(kThreads, kBlocks)
    univariate_transform_kernel(UnivariateTransform own, UnivariateTransformForward output) {
  for (int64_t index = first_row(); index < own.batch; index += rows_of_grid()) {
    const Row<T> row(own, index);
    T log_det = T(0);
    for (int64_t d = lane_id(); d < own.variables; d += kWarpSize) {
      T y, log_derivative;
      if constexpr (kAffine) {
        y = affine_forward(own.transform, row.parameter(own, d, 0), row.parameter(own, d, 1), row.x[d], log_derivative);
      } else {
        T* const numbers = static_cast<T*>(output.scratch) + (row.first + d) * own.count;
        for (int64_t k = 0; k < own.count; ++k) numbers[k] = row.parameter(own, d, k);
        y = spline_forward(own.transform, numbers, own.count, row.x[d], log_derivative);
      }
      static_cast<T*>(output.y)[row.first + d] = y;
      log_det += log_derivative;
    }
    log_det = warp_sum(log_det);
    if (lane_id() == 0) static_cast<T*>(output.log_det)[index] = log_det;
  }
}

template <typename T, bool kAffine>
__global__ void __launch_bounds__(kThreads, kBlocks)
    univariate_transform_backward_kernel(UnivariateTransform own, UnivariateTransformBackward output) {
  for (int64_t index = first_row(); index < own.batch; index += rows_of_grid()) {
    const Row<T> row(own, index);
    const T grad_log = static_cast<const T*>(output.grad_log_det)[index];
    T* const to = static_cast<T*>(output.grad_parameters) + row.first * own.count;
    for (int64_t d = lane_id(); d < own.variables; d += kWarpSize) {
      const T grad_y = static_cast<const T*>(output.grad_y)[row.first + d];
      T grad_x;
      if constexpr (kAffine) {
        T grad_shift, grad_a;
        grad_x = affine_backward(own.transform, row.parameter(own, d, 0), row.parameter(own, d, 1), row.x[d], grad_y,
                                 grad_log, grad_shift, grad_a);
        to[univariate_parameter(own, d, 0)] = grad_shift;
        to[univariate_parameter(own, d, 1)] = grad_a;
      } else {
        T* const numbers = static_cast<T*>(output.scratch) + 2 * (row.first + d) * own.count;
        T* const grads = numbers + own.count;
        for (int64_t k = 0; k < own.count; ++k) numbers[k] = row.parameter(own, d, k);
        grad_x = spline_backward(own.transform, numbers, own.count, row.x[d], grad_y, grad_log, grads);
        for (int64_t k = 0; k < own.count; ++k) to[univariate_parameter(own, d, k)] = grads[k];
      }
      static_cast<T*>(output.grad_x)[row.first + d] = grad_x;
    }
  }
}

unsigned blocks_for(const UnivariateTransform& own) {
  return static_cast<unsigned>(std::min(kMostBlocks, (own.batch + kWarps - 1) / kWarps));
}

template <typename T>
cudaError_t forward(const UnivariateTransform& own, const UnivariateTransformForward& output, cudaStream_t stream) {
  return launch({"univariate_transform", blocks_for(own), kThreads, 0, stream},
                own.transform.is_affine() ? univariate_transform_kernel<T, true> : univariate_transform_kernel<T, false>,
                own, output);
}

template <typename T>
cudaError_t backward(const UnivariateTransform& own, const UnivariateTransformBackward& output, cudaStream_t stream) {
  return launch({"univariate_transform_backward", blocks_for(own), kThreads, 0, stream},
                own.transform.is_affine() ? univariate_transform_backward_kernel<T, true>
                                          : univariate_transform_backward_kernel<T, false>,
                own, output);
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

cudaError_t univariate_transform_cuda(const UnivariateTransform& own, const UnivariateTransformForward& output,
                                      cudaStream_t stream) {
  return own.storage == ScalarType::float64 ? cuda::forward<double>(own, output, stream)
                                            : cuda::forward<float>(own, output, stream);
}

cudaError_t univariate_transform_backward_cuda(const UnivariateTransform& own,
                                               const UnivariateTransformBackward& output, cudaStream_t stream) {
  return own.storage == ScalarType::float64 ? cuda::backward<double>(own, output, stream)
                                            : cuda::backward<float>(own, output, stream);
}

}  // namespace ar_fast
