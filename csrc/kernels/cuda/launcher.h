// What a header of CUDA launchers needs: cudaError_t, cudaStream_t, and error messages. It has no torch header and no
// device code.
#pragma once

#if defined(AR_FAST_EMULATE_CUDA)
#include "../../testing/cuda_types.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace ar_fast {

// Valid until the next launch of this thread.
const char* cuda_error_message(cudaError_t error);

}  // namespace ar_fast
