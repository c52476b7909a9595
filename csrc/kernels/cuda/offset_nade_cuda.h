// NADE with input weights tied by offset, on CUDA: the launcher. The contract is in kernels/offset_nade.h; every
// pointer is device memory.
//
// The work is enqueued on `stream` without a synchronisation. The order of a row's additions depends only on H, K and
// the window, so a row does not depend on the batch it is drawn in.
#pragma once

#include "../offset_nade.h"
#include "launcher.h"

namespace ar_fast {

// Where the units and parameters of a block are stored: in its shared memory, or in scratch of scratch_bytes in total.
struct OffsetNadeCut {
  int64_t segments;        // threads that split the taps of a hidden unit of the first layer
  int64_t shared_bytes;    // 0 means in scratch
  int64_t scratch_bytes;
};
OffsetNadeCut offset_nade_cuda_cut(const OffsetNadeSample& sample);

// batch > 0. scratch is aligned to 256.
cudaError_t offset_nade_sample_cuda(const OffsetNadeSample& sample, void* scratch, cudaStream_t stream);

}  // namespace ar_fast
