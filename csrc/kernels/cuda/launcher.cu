#include "launcher.h"

#include "runtime.h"

namespace ar_fast {

const char* cuda_error_message(cudaError_t error) {
#if defined(AR_FAST_EMULATE_CUDA)
  return emulation::error_message(error);
#else
  return cudaGetErrorString(error);
#endif
}

}  // namespace ar_fast
