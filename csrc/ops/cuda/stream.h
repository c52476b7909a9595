// What every CUDA implementation of an op needs of torch: the device, the stream, and an error that names the op.
// The emulated library takes CPU tensors and has no streams.
#pragma once

#include <ATen/DeviceAccelerator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include "../../kernels/cuda/launcher.h"

namespace ar_fast {

// Of a tensor that lies on the device the kernels run on; hold a c10::DeviceGuard of it while launching.
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
