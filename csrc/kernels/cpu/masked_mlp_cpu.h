// One-pass sampling of a masked perceptron on the CPU. Rows are lanes, weights are broadcast. With a weight by input,
// each drawn value is added to the parameters of the positions after it.
#pragma once

#include "../masked_mlp.h"
#include "dispatch.h"

namespace ar_fast {

struct MaskedMlpLayout {
  int64_t lanes;                   // rows of one vector
  int64_t most_rows;               // the most rows of one call
  int64_t bytes;                   // scratch of one call
};

// Threads that share the work of one call: run calls body(context, part) for every part in 0 ... parts - 1, several at
// the same time, and returns when all are done. With one part, run is not called.
struct MaskedMlpTeam {
  int64_t parts;                   // at most masked_mlp_most_parts
  void (*run)(int64_t parts, void (*body)(void* context, int64_t part), void* context);
};
constexpr int64_t masked_mlp_most_parts = 64;

AR_FAST_DECLARE_CPU_KERNEL(masked_mlp_layout, const MaskedMlpSample&, int64_t parts, MaskedMlpLayout*)

// Rows [row_begin, row_end), at most most_rows of them. A row's arithmetic does not depend on any other row or on the
// team, which shares out the units of a block of positions: one thread computes each unit.
// multiply_adds receives how many were done for each row.
AR_FAST_DECLARE_CPU_KERNEL(masked_mlp_sample, const MaskedMlpSample&, int64_t row_begin, int64_t row_end, void* scratch,
                           const MaskedMlpTeam& team, int64_t* multiply_adds)

struct MaskedMlpPushLayout {
  int64_t block;                   // positions that are drawn before their values are added to later parameters
  int64_t bytes;                   // scratch of one call of masked_mlp_push for `rows` rows
};

// For a sample whose weight is by input.
AR_FAST_DECLARE_CPU_KERNEL(masked_mlp_push_layout, const MaskedMlpSample&, int64_t rows, MaskedMlpPushLayout*)

// Rows [row_begin, row_end). A row's arithmetic does not depend on any other row.
AR_FAST_DECLARE_CPU_KERNEL(masked_mlp_push, const MaskedMlpSample&, int64_t row_begin, int64_t row_end, void* scratch)

}  // namespace ar_fast
