// NADE with input weights tied by offset on the CPU: what kernels/cpu/offset_nade.cpp provides to the ops.
#pragma once

#include "../offset_nade.h"
#include "dispatch.h"

namespace ar_fast {

AR_FAST_DECLARE_CPU_KERNEL(offset_nade_layout, const OffsetNadeSample&, int64_t* scratch_bytes)

// Rows [row_begin, row_end). A row's arithmetic does not depend on any other row.
// scratch: scratch_bytes, aligned to 64.
AR_FAST_DECLARE_CPU_KERNEL(offset_nade_sample, const OffsetNadeSample&, int64_t row_begin, int64_t row_end,
                           void* scratch)

}  // namespace ar_fast
