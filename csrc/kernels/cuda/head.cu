// Heads over rows of parameters: log-likelihood and gradients. A thread takes a bernoulli variable; for the other heads
// a warp takes a variable.
//
// Designed for the memory bound. In the forward, parameters and x are read from memory once, coalesced, and one number
// per variable is written; in float32 that is 4 bytes per parameter and 8 more per variable. The backward writes as
// many parameters again. Further passes over the parameters of a variable find them in L1. From 32 parameters on, a
// load of a warp is 128 bytes; with fewer, 32 warps per SM (16 in float64) make up for the idle lanes. A bernoulli
// variable is 12 bytes forward and 16 to 20 backward.
#include "head_cuda.h"
#include "head_device.h"

#include <algorithm>

namespace ar_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
// Blocks that an SM holds at a time, as registers permit.
template <typename T>
constexpr int kBlocks = sizeof(T) == 8 ? 2 : 4;
// A thread or a warp takes further variables if there are more than a grid of this many blocks can take.
constexpr int64_t kMostBlocks = int64_t{1} << 30;

// HeadRows with typed pointers, passed to kernels by value.
template <typename T>
struct HeadArguments {
  Head head;
  int64_t batch, variables, parameter_rows;
  const int64_t* offsets;
  const T* parameters;
  const T* x;

  explicit HeadArguments(const HeadRows& rows)
      : head(rows.head),
        batch(rows.batch),
        variables(rows.variables),
        parameter_rows(rows.parameter_rows),
        offsets(rows.offsets),
        parameters(static_cast<const T*>(rows.parameters)),
        x(static_cast<const T*>(rows.x)) {}

  __device__ __forceinline__ int64_t first(int64_t variable) const {
    return offsets != nullptr ? offsets[variable] : variable * (parameter_rows / variables);
  }
};

template <typename T>
struct GradArguments {
  const T* grad;
  int64_t grad_stride;
  T* grad_parameters;
  T* grad_x;

  explicit GradArguments(const HeadBackward& output)
      : grad(static_cast<const T*>(output.grad)),
        grad_stride(output.grad_stride),
        grad_parameters(static_cast<T*>(output.grad_parameters)),
        grad_x(static_cast<T*>(output.grad_x)) {}
};

__device__ __forceinline__ int64_t first_item(int threads_each) {
  return (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / threads_each;
}
__device__ __forceinline__ int64_t items_of_grid(int threads_each) {
  return static_cast<int64_t>(gridDim.x) * kThreads / threads_each;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) bernoulli_log_prob_kernel(HeadArguments<T> arguments, T* log_prob) {
  const int64_t count = arguments.batch * arguments.variables;
  for (int64_t i = first_item(1); i < count; i += items_of_grid(1)) {
    log_prob[i] = bernoulli_log_prob(arguments.parameters[i], arguments.x[i]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    bernoulli_backward_kernel(HeadArguments<T> arguments, GradArguments<T> output) {
  const int64_t count = arguments.batch * arguments.variables;
  for (int64_t i = first_item(1); i < count; i += items_of_grid(1)) {
    const T logit = arguments.parameters[i];
    const T grad = output.grad[output.grad_stride != 0 ? i : i / arguments.variables];
    output.grad_parameters[i] = grad * (arguments.x[i] - sigmoid(logit));
    output.grad_x[i] = grad * logit;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) head_log_prob_kernel(HeadArguments<T> arguments, T* log_prob) {
  const int64_t count = arguments.batch * arguments.variables;
  for (int64_t i = first_item(kWarpSize); i < count; i += items_of_grid(kWarpSize)) {
    const int64_t row = i / arguments.variables, variable = i % arguments.variables;
    const int64_t first = arguments.first(variable);
    const T result =
        head_log_prob_one(arguments.head.of(variable), arguments.parameters + row * arguments.parameter_rows + first,
                          static_cast<int>(arguments.first(variable + 1) - first), arguments.x[i]);
    if (lane_id() == 0) log_prob[i] = result;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    head_backward_kernel(HeadArguments<T> arguments, GradArguments<T> output) {
  const int64_t count = arguments.batch * arguments.variables;
  for (int64_t i = first_item(kWarpSize); i < count; i += items_of_grid(kWarpSize)) {
    const int64_t row = i / arguments.variables, variable = i % arguments.variables;
    const int64_t first = arguments.first(variable), at = row * arguments.parameter_rows + first;
    const T by_x = head_backward_one(arguments.head.of(variable), arguments.parameters + at,
                                     static_cast<int>(arguments.first(variable + 1) - first), arguments.x[i],
                                     output.grad[output.grad_stride != 0 ? i : row], output.grad_parameters + at);
    if (lane_id() == 0) output.grad_x[i] = by_x;
  }
}

unsigned blocks_for(const HeadRows& rows) {
  const int64_t each = rows.head.kind == HeadKind::bernoulli ? kThreads : kWarps;
  return static_cast<unsigned>(std::min(kMostBlocks, (rows.batch * rows.variables + each - 1) / each));
}

template <typename T>
cudaError_t log_prob(const HeadRows& rows, const HeadLogProb& output, cudaStream_t stream) {
  const bool bernoulli = rows.head.kind == HeadKind::bernoulli;
  return launch({bernoulli ? "bernoulli_log_prob" : "head_log_prob", blocks_for(rows), kThreads, 0, stream},
                bernoulli ? bernoulli_log_prob_kernel<T> : head_log_prob_kernel<T>, HeadArguments<T>(rows),
                static_cast<T*>(output.log_prob_per_variable));
}

template <typename T>
cudaError_t backward(const HeadRows& rows, const HeadBackward& output, cudaStream_t stream) {
  const bool bernoulli = rows.head.kind == HeadKind::bernoulli;
  return launch({bernoulli ? "bernoulli_backward" : "head_backward", blocks_for(rows), kThreads, 0, stream},
                bernoulli ? bernoulli_backward_kernel<T> : head_backward_kernel<T>, HeadArguments<T>(rows),
                GradArguments<T>(output));
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

cudaError_t head_log_prob_cuda(const HeadRows& rows, const HeadLogProb& output, cudaStream_t stream) {
  return rows.storage == ScalarType::float64 ? cuda::log_prob<double>(rows, output, stream)
                                             : cuda::log_prob<float>(rows, output, stream);
}

cudaError_t head_backward_cuda(const HeadRows& rows, const HeadBackward& output, cudaStream_t stream) {
  return rows.storage == ScalarType::float64 ? cuda::backward<double>(rows, output, stream)
                                             : cuda::backward<float>(rows, output, stream);
}

}  // namespace ar_fast
