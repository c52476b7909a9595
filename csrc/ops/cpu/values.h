// On the CPU values can be looked at without a synchronisation, so indices that would read outside a tensor raise.
#pragma once

#include "../../kernels/head.h"
#include "../common.h"

namespace ar_fast {

// A variable has at least `fewest` of the rows, 0 or 1.
void check_offset_values(const char* op, const char* name, const int64_t* offsets, int64_t variables, int64_t rows,
                         int64_t fewest = 1);

void check_order_values(const char* op, const int64_t* order, int64_t variables);

// head.kinds, where there are any, name heads; each variable has parameters as its head wants them, and a category of x
// [B, D] (null: none) is one of them.
void check_head_values(const char* op, const Head& head, int64_t variables, int64_t rows, const int64_t* offsets,
                       int64_t batch, const float* x, const double* x_double);

// in_offsets (null: none) run from 0 to in_rows; a categorical variable has a row for each of its categories, another
// one.
void check_input_rows(const char* op, const Head& head, int64_t variables, int64_t rows, const int64_t* offsets,
                      const int64_t* in_offsets, int64_t in_rows);

}  // namespace ar_fast
