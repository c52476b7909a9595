// Draws: what every sampling op shares, CPU and CUDA. A sampler computes the parameters of the variable at a position;
// what happens then is the same for all of them: a known value is taken, any other is drawn, and log p of what was
// drawn is added up. Here is what that needs, by row of the batch and by position; cpu/draws.h and cuda/draws_device.h
// do it.
//
// The random numbers of a draw are Philox's (philox.h) at (first_index + row, first_variable + variable, slot), so that
// a value depends on no other row, nor on where a call is cut.
//
// A categorical variable may be drawn from its likeliest categories only. They are ordered by their logits, equal ones by
// their number. top_k > 0 keeps so many. Of those, top_p < 1 keeps the fewest whose share of the kept
// probability at the temperature reaches it, and one at least. log p is that of the whole distribution.
// Source: Holtzman, Buys, Du, Forbes, Choi, "The curious case of neural text degeneration", ICLR 2020.
#pragma once

#include "head.h"
#include "philox.h"
#include "types.h"

namespace ar_fast {

struct Draws {
  Head head;
  bool kinds_by_variable;          // head.kinds goes by variable; else by position
  int64_t batch;                   // B
  int64_t variables;               // D
  const int64_t* order;            // [D], order[p] = variable at position p; null = identity
  int64_t start, stop;             // the positions to draw
  uint64_t seed;
  int64_t first_index;             // sample index of row 0, for the random counter
  int64_t first_variable;          // the number of variable 0, for the random counter
  int64_t top_k;                   // 0 = all; else at least 1
  double top_p;                    // 1 = all; else in (0, 1)
  double temperature;              // > 0; changes the draw as head.h says, not log_prob
  const void* given;               // [B, D] compute, by variable; null if nothing is known
  const uint8_t* known;            // [B, D] by variable, non-zero = take given; null if nothing is known
  void* values;                    // [B, stop - start] compute, by position, written
  int64_t values_stride;           // from row to row
  double* log_prob;                // [B]: sum over the drawn variables at temperature 1, written

  AR_FAST_HOST_DEVICE int64_t variable(int64_t position) const { return order ? order[position] : position; }
  AR_FAST_HOST_DEVICE Head head_at(int64_t position) const {
    return head.kinds == nullptr ? head : head.of(kinds_by_variable ? variable(position) : position);
  }
  // Of the random counter.
  AR_FAST_HOST_DEVICE uint32_t counter(int64_t position) const {
    return static_cast<uint32_t>(first_variable + variable(position));
  }
  AR_FAST_HOST_DEVICE uint64_t index(int64_t row) const { return static_cast<uint64_t>(first_index + row); }
  AR_FAST_HOST_DEVICE bool truncates() const { return top_k > 0 || top_p < 1; }
  AR_FAST_HOST_DEVICE bool is_known(int64_t row, int64_t position) const {
    return known != nullptr && known[row * variables + variable(position)] != 0;
  }
  // Where the value of a row is known, its place in given; else null.
  template <typename T>
  AR_FAST_HOST_DEVICE const T* known_value(int64_t row, int64_t position) const {
    if (known == nullptr) return nullptr;
    const int64_t at = row * variables + variable(position);
    return known[at] != 0 ? static_cast<const T*>(given) + at : nullptr;
  }
  // The values of a row, to be indexed by positions.
  template <typename T>
  AR_FAST_HOST_DEVICE T* values_of(int64_t row) const {
    return static_cast<T*>(values) + row * values_stride - start;
  }
};

}  // namespace ar_fast
