// NADE on CUDA: launchers. The arithmetic is in kernels/nade.h; every pointer of its structures is device memory.
//
// All work is enqueued on `stream` without a synchronisation, so it can be captured in a graph. Scratch is device
// memory of the bytes that the function beside the launcher says, aligned to 256; it may be reused when the stream has
// passed the launch. A row's result does not depend on the batch it is in, and gradients are bitwise the same in every
// run.
#pragma once

#include "../nade.h"
#include "launcher.h"

namespace ar_fast {

int64_t nade_forward_cuda_scratch(const NadeModel& model, int64_t batch);
// batch > 0.
cudaError_t nade_forward_cuda(const NadeModel& model, const NadeInput& input, const NadeForward& output, void* scratch,
                              cudaStream_t stream);

int64_t nade_backward_cuda_scratch(const NadeModel& model, const NadeInput& input);
// grad_in_weight, grad_out_weight and grad_in_bias are not null. batch = 0 writes zeros.
cudaError_t nade_backward_cuda(const NadeModel& model, const NadeInput& input, const NadeBackward& output,
                               void* scratch, cudaStream_t stream);

// The most hidden units that nade_sample_cuda takes: the state of a sample lives in the registers of one block.
int64_t nade_sample_cuda_max_hidden(ScalarType storage);
// batch > 0.
cudaError_t nade_sample_cuda(const NadeModel& model, const NadeSample& sample, cudaStream_t stream);

}  // namespace ar_fast
