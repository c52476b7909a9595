// Sampling of an orderless NADE of several layers on CUDA: the launcher. The arithmetic is in kernels/deep_nade.h;
// every pointer is device memory.
//
// Enqueued on `stream` without a synchronisation. A row does not depend on the batch it is drawn in, nor on where a
// call ends.
#pragma once

#include "../deep_nade.h"
#include "launcher.h"

namespace ar_fast {

// Where the hidden units of a block's rows lie while they draw: in shared memory, or in scratch.
struct DeepNadeCut {
  bool in_shared;
  int64_t blocks, rows;            // rows of a block, at most
  int64_t padded;                  // units of the widest layer, a whole number of vectors
  int64_t shared_bytes, scratch_bytes;
};
DeepNadeCut deep_nade_cuda_cut(const DeepNadeSample& sample);

// batch > 0. scratch: scratch_bytes of the cut, aligned to 16.
cudaError_t deep_nade_sample_cuda(const DeepNadeSample& sample, const DeepNadeCut& cut, void* scratch,
                                  cudaStream_t stream);

}  // namespace ar_fast
