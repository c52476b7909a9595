// FVSBN sampling on the CPU. The arithmetic is in kernels/fvsbn.h.
#pragma once

#include "../fvsbn.h"
#include "dispatch.h"

namespace ar_fast {

struct FvsbnLayout {
  int64_t block;                   // positions that are drawn before their values are pushed further
  int64_t bytes;                   // scratch of one call of fvsbn_sample for `rows` rows
};

// most_parameters: of one variable.
AR_FAST_DECLARE_CPU_KERNEL(fvsbn_layout, const FvsbnSample&, int64_t most_parameters, int64_t rows, FvsbnLayout*)

// Rows [row_begin, row_end). A row's arithmetic does not depend on any other row.
AR_FAST_DECLARE_CPU_KERNEL(fvsbn_sample, const FvsbnSample&, int64_t most_parameters, int64_t row_begin,
                           int64_t row_end, void* scratch)

}  // namespace ar_fast
