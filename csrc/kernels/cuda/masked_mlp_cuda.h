// One-pass sampling of a masked perceptron on CUDA: the launcher. The contract is in kernels/masked_mlp.h; every
// pointer, including those inside the layers, points to device memory.
//
// The work is enqueued on `stream` without a synchronisation. The order of a row's additions depends only on the
// extents, so a row does not depend on the batch it is drawn in.
#pragma once

#include "../masked_mlp.h"
#include "launcher.h"

namespace ar_fast {

// Bytes of device memory that the launch needs besides the state.
int64_t masked_mlp_sample_cuda_scratch(const MaskedMlpSample& sample);

// batch > 0.
cudaError_t masked_mlp_sample_cuda(const MaskedMlpSample& sample, void* scratch, cudaStream_t stream);

}  // namespace ar_fast
