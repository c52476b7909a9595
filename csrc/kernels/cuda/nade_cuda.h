// NADE on CUDA: launchers. The arithmetic is in kernels/nade.h; every pointer of its structures is device memory.
//
// All work is enqueued on `stream` without a synchronisation, so it can be captured in a graph. Scratch is device
// memory, aligned to 256; the cut declared beside each launcher gives its scratch_bytes. It may be reused when the
// stream has passed the launch. A row's result does not depend on the batch it is in, and gradients are bitwise the
// same in every run.
#pragma once

#include "../nade.h"
#include "launcher.h"

namespace ar_fast {

// How the forward is split: chunks of positions in parallel, strips of hidden units, `rows` of the batch at a time.
struct NadeForwardCut {
  bool tiles;          // both weights are staged in shared memory
  int64_t chunk, chunks, strip, strips, rows;
  int64_t scratch_bytes;
};
NadeForwardCut nade_forward_cuda_cut(const NadeModel& model, const NadeInput& input);
// batch > 0. scratch: scratch_bytes of the cut.
cudaError_t nade_forward_cuda(const NadeModel& model, const NadeInput& input, const NadeForward& output, void* scratch,
                              cudaStream_t stream);

// How the backward is split: segments of tiles of `tile` positions, one segment after another.
struct NadeBackwardCut {
  int64_t tile, tiles, segments;
  int64_t scratch_bytes;
};
NadeBackwardCut nade_backward_cuda_cut(const NadeModel& model, const NadeInput& input);
// grad_in_weight, grad_out_weight and grad_in_bias are not null. batch = 0 writes zeros.
cudaError_t nade_backward_cuda(const NadeModel& model, const NadeInput& input, const NadeBackward& output,
                               void* scratch, cudaStream_t stream);

// How sampling is split: a block of `warps` warps per sample, `rows` of the batch at a time.
struct NadeSampleCut {
  bool registers;      // the plain Bernoulli case: the block keeps the state of a sample in registers
  int64_t warps, shared_bytes;
  bool units_shared, parameters_shared;  // in shared memory, not in scratch
  int64_t rows;
  int64_t scratch_bytes;
};
NadeSampleCut nade_sample_cuda_cut(const NadeModel& model, const NadeSample& sample);
// batch > 0.
cudaError_t nade_sample_cuda(const NadeModel& model, const NadeSample& sample, void* scratch, cudaStream_t stream);

}  // namespace ar_fast
