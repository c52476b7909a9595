// ARMLP sampling on the CPU. The arithmetic is in kernels/armlp.h.
#pragma once

#include "../armlp.h"
#include "dispatch.h"

namespace ar_fast {

// Scratch of one call of armlp_sample for `rows` rows; no variable has more than most_parameters parameters.
AR_FAST_DECLARE_CPU_KERNEL(armlp_scratch, const ArmlpSample&, int64_t most_parameters, int64_t rows, int64_t* bytes)

// Rows [row_begin, row_end). A row's arithmetic does not depend on any other row.
AR_FAST_DECLARE_CPU_KERNEL(armlp_sample, const ArmlpSample&, int64_t most_parameters, int64_t row_begin,
                           int64_t row_end, void* scratch)

}  // namespace ar_fast
