// FVSBN sampling on CUDA: the launcher. The arithmetic is in kernels/fvsbn.h; every pointer is device memory.
//
// Enqueued on `stream` without a synchronisation. A row does not depend on the batch it is drawn in.
#pragma once

#include "../fvsbn.h"
#include "launcher.h"

namespace ar_fast {

// Whether a sample's parameters lie in shared memory while it is drawn, not in the state tensor.
bool fvsbn_sample_in_shared_memory(const FvsbnSample& sample);

// batch > 0.
cudaError_t fvsbn_sample_cuda(const FvsbnSample& sample, cudaStream_t stream);

}  // namespace ar_fast
