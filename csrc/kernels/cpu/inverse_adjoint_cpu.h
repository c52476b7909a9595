// The backward sweep of an inverse: what kernels/cpu/inverse_adjoint.cpp provides to the ops. The contract is in
// kernels/inverse_adjoint.h.
#pragma once

#include "../inverse_adjoint.h"
#include "dispatch.h"

namespace ar_fast {

// *rows: how many rows are swept together. The scratch of a call holds so many numbers for each unit of every value.
AR_FAST_DECLARE_CPU_KERNEL(inverse_adjoint_rows, ScalarType storage, int64_t* rows)

// Rows [row_begin, row_end) of adjoint. A row's sums do not depend on the others.
AR_FAST_DECLARE_CPU_KERNEL(inverse_adjoint, const InverseAdjoint&, int64_t row_begin, int64_t row_end, void* scratch)

}  // namespace ar_fast
