// Products of small matrices: what kernels/cpu/small_product.cpp provides to the ops. The contract is in
// kernels/small_product.h.
#pragma once

#include "../small_product.h"
#include "dispatch.h"

namespace ar_fast {

// *width: how far apart the rows of a packed matrix of so many columns are.
AR_FAST_DECLARE_CPU_KERNEL(small_product_width, ScalarType storage, int64_t columns, int64_t* width)

AR_FAST_DECLARE_CPU_KERNEL(small_product_pack, const SmallProductSource&, void* packed)

// Rows [row_begin, row_end) of c. A row's sums do not depend on the others.
AR_FAST_DECLARE_CPU_KERNEL(small_product, const SmallProduct&, int64_t row_begin, int64_t row_end)

// Columns of a whole number of vectors from column_begin on; a column's sum does not depend on the others.
AR_FAST_DECLARE_CPU_KERNEL(small_activation_backward, const SmallActivationBackward&, int64_t column_begin,
                           int64_t column_end)

}  // namespace ar_fast
