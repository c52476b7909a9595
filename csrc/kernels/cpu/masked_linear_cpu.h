// What masked_linear needs besides torch's GEMM on the CPU: packing of masked weights, and complete kernels for batches
// so small that reading the weight dominates the cost. `storage` is the type of the weight (and of its gradient); all
// other matrices have the compute type and are row major.
#pragma once

#include "../masked_linear.h"
#include "dispatch.h"

namespace ar_fast {

// The rows [row_begin, row_end) and the columns [column_begin, column_end) of a weight. In the nested plan they are in
// sorted order: sorted row r is row plan.rows[r] and sorted column k is column plan.columns[k] of the weight.
struct MaskedRectangle {
  int64_t row_begin, row_end, column_begin, column_end;
};

// rank[c] is the index of column c in plan.columns; null if columns is null. It is not in the plan, since only the host
// needs it.
struct MaskedRows {
  ScalarType storage;
  MaskPlan plan;
  const int32_t* rank;             // [I] or null
  int64_t batch;                   // B
  const void* input;               // [B, I] compute, contiguous
  const void* weight;              // [O, I] storage, contiguous
  const void* bias;                // [O] compute or null
  Activation activation;        // for masked_forward_rows
  const void* grad_output;         // [B, O] compute, contiguous
  void* output;                    // see each kernel; contiguous
  void* scratch;                   // see each kernel
};

// Writes the rectangle of weight into packed, contiguous, in compute type; masked weights become exactly zero.
AR_FAST_DECLARE_CPU_KERNEL(masked_pack, ScalarType storage, const MaskPlan& plan, const void* weight,
                           const MaskedRectangle& rectangle, void* packed)

// Writes rows of the weight's gradient, masked and cast to storage. In the nested plan it writes whole rows from packed
// [rows, column_end], whose columns are sorted; in the blocks plan it writes only the rectangle.
AR_FAST_DECLARE_CPU_KERNEL(masked_unpack, ScalarType storage, const MaskPlan& plan, const int32_t* rank,
                           const void* packed, const MaskedRectangle& rectangle, void* weight)

// Sets the masked part of rows of a weight's gradient to zero, in place. The plan is a sorted staircase or blocks.
AR_FAST_DECLARE_CPU_KERNEL(masked_clear, ScalarType storage, const MaskPlan& plan, int64_t row_begin, int64_t row_end,
                           void* weight)

// Copies rows of the weight, in its own order, to output [rows, I] compute; masked weights become exactly zero.
AR_FAST_DECLARE_CPU_KERNEL(masked_copy_rows, const MaskedRows& arguments, int64_t row_begin, int64_t row_end)

// output[:, o] of [B, O] compute for rows o of the weight. scratch: I of compute type.
AR_FAST_DECLARE_CPU_KERNEL(masked_forward_rows, const MaskedRows& arguments, int64_t row_begin, int64_t row_end)

// output[:, c] of [B, I] compute for columns c. scratch: I of compute type.
AR_FAST_DECLARE_CPU_KERNEL(masked_grad_input_columns, const MaskedRows& arguments, int64_t column_begin,
                           int64_t column_end)

// output[o, :] of [O, I] storage for rows o. scratch: I of compute type.
AR_FAST_DECLARE_CPU_KERNEL(masked_grad_weight_rows, const MaskedRows& arguments, int64_t row_begin, int64_t row_end)

// A product with zero instead of a masked weight is NaN if its other operand is not finite. This function recomputes
// each NaN, from only the weights that the mask allows, in the rows [row_begin, row_end) of y [B, O] (grad_output null)
// or of dX [B, I] (input null), which is `output` in compute type with the activation applied.
AR_FAST_DECLARE_CPU_KERNEL(masked_mend_rows, const MaskedRows& arguments, int64_t row_begin, int64_t row_end)

}  // namespace ar_fast
