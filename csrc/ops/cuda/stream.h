// What the CUDA implementations of all ops need from torch: the device, the stream, and an error that names the op.
// The emulated library takes CPU tensors and has no streams.
#pragma once

#include <ATen/DeviceAccelerator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include "../../kernels/cuda/launcher.h"

namespace ar_fast {

// The stream for a tensor on the kernels' device; hold a c10::DeviceGuard of the tensor while launching.
inline cudaStream_t current_stream(const at::Tensor& tensor) {
#if defined(AR_FAST_EMULATE_CUDA)
  (void)tensor;
  return nullptr;
#else
  return static_cast<cudaStream_t>(at::accelerator::getCurrentStream(tensor.device().index()).native_handle());
#endif
}

inline void check_launch(const char* op, cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, op, ": the CUDA launch failed: ", cuda_error_message(error));
}

}  // namespace ar_fast
