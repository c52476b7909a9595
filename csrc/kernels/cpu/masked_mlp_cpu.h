// One-pass sampling of a masked perceptron on the CPU: rows are lanes, weights are broadcast.
#pragma once

#include "../masked_mlp.h"
#include "dispatch.h"

namespace ar_fast {

struct MaskedMlpLayout {
  int64_t lanes;                   // rows of one vector
  int64_t most_rows;               // rows of one call at most
  int64_t bytes;                   // scratch of one call
};

AR_FAST_DECLARE_CPU_KERNEL(masked_mlp_layout, const MaskedMlpSample&, MaskedMlpLayout*)

// Rows [row_begin, row_end), at most most_rows of them. A row's arithmetic does not depend on any other row.
// multiply_adds receives those done for each row.
AR_FAST_DECLARE_CPU_KERNEL(masked_mlp_sample, const MaskedMlpSample&, int64_t row_begin, int64_t row_end, void* scratch,
                           int64_t* multiply_adds)

}  // namespace ar_fast
