// NADE on the CPU: what kernels/cpu/nade_*.cpp provide to the ops. The arithmetic is in kernels/nade.h.
//
// Positions are split into chunks, so that the weights of a chunk stay in the cache while all rows pass through it.
// Hidden units are split into strips of 4 vectors, whose state stays in registers while a row passes through the chunk.
// If an input is zero, the state does not change: neither state nor activation is recomputed (exact).
#pragma once

#include "../nade.h"
#include "dispatch.h"

namespace ar_fast {

struct NadeChunks {
  const int64_t* starts;   // [count + 1], from the first position to the one after the last
  int64_t count;
  int64_t max_positions;   // in one chunk
  int64_t max_in_rows;     // in_weight rows of one chunk
  int64_t max_out_rows;    // out_weight rows of one chunk
};

// A run of chunks that the forward takes as one task. Few rows are cut into several segments, with a state before each.
struct NadeSegment {
  int64_t chunk_begin, chunk_end;
  void* states;            // [B, NadeLayout::state_bytes] before its first position; null means in_bias
  double* sums;            // [B] its share of log_prob, written
};

// The inputs of the rows that are not zero.
struct NadeChanges {
  void* changes;           // [B, D] of NadeLayout::change_bytes: a row's non-zero inputs in the order of positions
  int64_t* begins;         // [B, chunks + 1] the first one of each chunk
};

struct NadeLayout {
  int64_t strip;                     // hidden units of one strip
  int64_t strips;
  int64_t vector_bytes;
  int64_t state_bytes;               // of one row's state in NadeSegment
  int64_t change_bytes;              // of one entry of NadeChanges
  int64_t steps_bytes;               // scratch of one call of nade_segment_states or nade_changes
  int64_t forward_bytes;             // scratch of one call of nade_forward for `rows` rows
  int64_t backward_weights_bytes;    // of one call of nade_backward_weights
  int64_t backward_input_bytes;      // of one call of nade_backward_input
  int64_t sample_bytes;              // of one call of nade_sample for `rows` rows
};

AR_FAST_DECLARE_CPU_KERNEL(nade_layout, const NadeModel&, const NadeChunks&, int64_t batch, int64_t rows, NadeLayout*)

// Rows [row_begin, row_end) of one segment. It leaves NadeForward::log_prob to the caller, who adds the segments' sums.
AR_FAST_DECLARE_CPU_KERNEL(nade_forward, const NadeModel&, const NadeInput&, const NadeForward&, const NadeChunks&,
                           const NadeSegment&, int64_t row_begin, int64_t row_end, void* scratch)

// Up to so many rows go straight through the weights, which are not packed, where a variable has one parameter and the
// weights are of the compute type.
constexpr int64_t nade_single_rows = 2;
inline bool nade_goes_single(const NadeModel& model) {
  const bool compute_type = model.storage == ScalarType::float32 || model.storage == ScalarType::float64;
  return compute_type && !model.out_offsets && model.out_rows == model.variables && !model.activation_scale;
}

// The sums [D, vector] of such a row over the hidden units [unit_begin, unit_end), by position: lanes that are added up
// by nade_finish_units, over `parts` such ranges of units, [parts, D, vector]. `sum` is the row's log_prob.
AR_FAST_DECLARE_CPU_KERNEL(nade_forward_units, const NadeModel&, const NadeInput&, const NadeChunks&, int64_t row,
                           int64_t unit_begin, int64_t unit_end, void* sums, void* scratch)
AR_FAST_DECLARE_CPU_KERNEL(nade_finish_units, const NadeModel&, const NadeInput&, const NadeForward&,
                           const NadeChunks&, int64_t row, const void* sums, int64_t parts, double* sum, void* scratch)

// Writes one strip of the states of all segments, which must be consecutive from the first chunk on.
AR_FAST_DECLARE_CPU_KERNEL(nade_segment_states, const NadeModel&, const NadeInput&, const NadeChunks&,
                           const NadeSegment* segments, int64_t count, int64_t strip, void* scratch)

// Writes the changes of rows [row_begin, row_end).
AR_FAST_DECLARE_CPU_KERNEL(nade_changes, const NadeModel&, const NadeInput&, const NadeChunks&, const NadeChanges&,
                           int64_t row_begin, int64_t row_end, void* scratch)

// Weight and bias gradients of one strip of hidden units, over all rows in ascending order. No other call writes
// them, so the result does not depend on the number of threads.
AR_FAST_DECLARE_CPU_KERNEL(nade_backward_weights, const NadeModel&, const NadeInput&, const NadeBackward&,
                           const NadeChunks&, const NadeChanges&, int64_t strip, void* scratch)

// grad_x and grad_activation_scale of rows [row_begin, row_end).
AR_FAST_DECLARE_CPU_KERNEL(nade_backward_input, const NadeModel&, const NadeInput&, const NadeBackward&,
                           const NadeChunks&, int64_t row_begin, int64_t row_end, void* scratch)

// Rows [row_begin, row_end); the chunks run from sample.start to sample.stop. A row's arithmetic does not depend on any
// other row. It depends on the chunks only in the order in which log_prob is summed.
AR_FAST_DECLARE_CPU_KERNEL(nade_sample, const NadeModel&, const NadeSample&, const NadeChunks&, int64_t row_begin,
                           int64_t row_end, void* scratch)

}  // namespace ar_fast
