// ARMLP sampling on CUDA: the launcher. The arithmetic is in kernels/armlp.h; every pointer is device memory.
//
// The work is enqueued on `stream` without a synchronisation. A row does not depend on the batch it is drawn in.
#pragma once

#include "../armlp.h"
#include "launcher.h"

namespace ar_fast {

// Where the values, hidden units and parameters of a sample are stored while it is drawn: in shared memory, or in
// scratch, for `rows` of the batch at a time.
struct ArmlpSampleCut {
  bool in_shared;
  int64_t rows, shared_bytes, scratch_bytes;
};
ArmlpSampleCut armlp_sample_cuda_cut(const ArmlpSample& sample);

// batch > 0. scratch: scratch_bytes of the cut.
cudaError_t armlp_sample_cuda(const ArmlpSample& sample, void* scratch, cudaStream_t stream);

}  // namespace ar_fast
