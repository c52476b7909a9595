// ARMLP sampling on CUDA: the launcher. The arithmetic is in kernels/armlp.h; every pointer is device memory.
//
// Enqueued on `stream` without a synchronisation. A row does not depend on the batch it is drawn in.
#pragma once

#include "../armlp.h"
#include "launcher.h"

namespace ar_fast {

// Where a sample's values, hidden units and parameters lie while it is drawn: in shared memory, or `rows` of the batch
// at a time in scratch.
struct ArmlpSampleCut {
  bool in_shared;
  int64_t rows, shared_bytes, scratch_bytes;
};
ArmlpSampleCut armlp_sample_cuda_cut(const ArmlpSample& sample);

// batch > 0. scratch: scratch_bytes of the cut.
cudaError_t armlp_sample_cuda(const ArmlpSample& sample, void* scratch, cudaStream_t stream);

}  // namespace ar_fast
