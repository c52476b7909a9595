// NADE with input weights tied by offset, on CUDA: the launcher. The contract is in kernels/offset_nade.h; every
// pointer is device memory.
//
// Enqueued on `stream` without a synchronisation. The order of a row's additions is fixed by H, K and the window alone,
// so a row does not depend on the batch it is drawn in.
#pragma once

#include "../offset_nade.h"
#include "launcher.h"

namespace ar_fast {

// Where a block's units and parameters lie: in its shared memory, or in scratch of scratch_bytes in all.
struct OffsetNadeCut {
  int64_t segments;        // threads that share out the taps of a hidden unit
  int64_t shared_bytes;    // 0 = in scratch
  int64_t scratch_bytes;
};
OffsetNadeCut offset_nade_cuda_cut(const OffsetNadeSample& sample);

// batch > 0. scratch is aligned to 256.
cudaError_t offset_nade_sample_cuda(const OffsetNadeSample& sample, void* scratch, cudaStream_t stream);

}  // namespace ar_fast
