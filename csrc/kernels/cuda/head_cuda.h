// Heads on CUDA: launchers. The arithmetic is in kernels/head.h; every pointer of its structures is device memory.
//
// All work is enqueued on `stream` without a synchronisation, so it can be captured in a graph. A variable's result
// does not depend on the others. batch > 0.
#pragma once

#include "../head.h"
#include "launcher.h"

namespace ar_fast {

cudaError_t head_log_prob_cuda(const HeadRows& rows, const HeadLogProb& output, cudaStream_t stream);
cudaError_t head_backward_cuda(const HeadRows& rows, const HeadBackward& output, cudaStream_t stream);

}  // namespace ar_fast
