// FVSBN sampling on CUDA: the launcher. The arithmetic is in kernels/fvsbn.h; every pointer is device memory.
//
// The work is enqueued on `stream` without a synchronisation. A row does not depend on the batch it is drawn in.
#pragma once

#include "../fvsbn.h"
#include "launcher.h"

namespace ar_fast {

// Whether the parameters of a sample are in shared memory while it is drawn; otherwise they are in the state tensor.
bool fvsbn_sample_in_shared_memory(const FvsbnSample& sample);

// batch > 0.
cudaError_t fvsbn_sample_cuda(const FvsbnSample& sample, cudaStream_t stream);

}  // namespace ar_fast
