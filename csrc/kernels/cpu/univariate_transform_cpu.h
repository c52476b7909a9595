// The univariate transforms of a flow's density on the CPU: what kernels/cpu/univariate_transform.cpp provides to the
// ops. The contract is in kernels/univariate_transform.h.
#pragma once

#include "../univariate_transform.h"
#include "dispatch.h"

namespace ar_fast {

// Rows [row_begin, row_end). scratch: [2 K] of the tensors' type for a spline, otherwise null.
AR_FAST_DECLARE_CPU_KERNEL(univariate_transform, const UnivariateTransform&, const UnivariateTransformForward&,
                           int64_t row_begin, int64_t row_end, void* scratch)

AR_FAST_DECLARE_CPU_KERNEL(univariate_transform_backward, const UnivariateTransform&,
                           const UnivariateTransformBackward&, int64_t row_begin, int64_t row_end, void* scratch)

}  // namespace ar_fast
