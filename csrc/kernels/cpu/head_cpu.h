// Heads on the CPU: what kernels/cpu/head.cpp provides to the ops. The arithmetic is in kernels/head.h.
#pragma once

#include "../head.h"
#include "dispatch.h"

namespace ar_fast {

// Rows [row_begin, row_end).
AR_FAST_DECLARE_CPU_KERNEL(head_log_prob, const HeadRows&, const HeadLogProb&, int64_t row_begin, int64_t row_end)

AR_FAST_DECLARE_CPU_KERNEL(head_backward, const HeadRows&, const HeadBackward&, int64_t row_begin, int64_t row_end)

}  // namespace ar_fast
