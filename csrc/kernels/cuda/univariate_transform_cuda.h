// The univariate transforms of a flow's density on CUDA: launchers. The contract is in kernels/univariate_transform.h;
// every pointer of its structures is device memory.
//
// All work is enqueued on `stream` without a synchronisation, so it can be captured in a graph. A row's result does not
// depend on the others. batch > 0.
#pragma once

#include "../univariate_transform.h"
#include "launcher.h"

namespace ar_fast {

cudaError_t univariate_transform_cuda(const UnivariateTransform& own, const UnivariateTransformForward& output,
                                      cudaStream_t stream);
cudaError_t univariate_transform_backward_cuda(const UnivariateTransform& own,
                                               const UnivariateTransformBackward& output, cudaStream_t stream);

}  // namespace ar_fast
