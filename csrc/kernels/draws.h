// Draws: what all sampling ops share, on CPU and CUDA. A sampler computes the parameters of the variable at a position;
// the next step is the same for all of them: a known value is taken, any other value is drawn, and log p of the drawn
// values is summed. This header has the arguments for this, by row of the batch and by position; cpu/draws.h and
// cuda/draws_device.h implement it.
//
// A draw uses Philox's random numbers (philox.h) at (first_index + row, first_variable + variable, slot), so that a
// value does not depend on other rows or on how calls are cut.
//
// A categorical variable may be drawn from only its likeliest categories. They are ordered by their logits, and equal
// logits by their number. top_k > 0 keeps the first top_k categories. Of those, top_p < 1 keeps the fewest whose share
// of the kept probability at the temperature reaches top_p, and at least one. log p is that of the whole distribution.
// Values may also be coded instead of drawn: those in coding.values, whose intervals are written, or those that the
// streams of the rows hold. Each row has a stream, in the order of its positions. The parameters are computed as for a
// draw, by the same instructions in the same order. log_prob then holds no meaning. Only the CPU kernels code.
//
// Source: Holtzman, Buys, Du, Forbes, Choi, "The curious case of neural text degeneration", ICLR 2020.
#pragma once

#include "head.h"
#include "philox.h"
#include "range_coder.h"
#include "types.h"

namespace ar_fast {

struct Coding {
  const void* values;              // [B, D] compute, by variable: to encode; null when decoding
  Interval* intervals;             // [B, stop - start] by position, written when encoding; else null
  RangeDecoder* decoders;          // [B], advanced when decoding; else null

  AR_FAST_HOST_DEVICE bool runs() const { return intervals != nullptr || decoders != nullptr; }
};

struct Draws {
  Head head;
  bool kinds_by_variable;          // head.kinds is indexed by variable; else by position
  int64_t batch;                   // B
  int64_t variables;               // D
  const int64_t* order;            // [D], order[p] = variable at position p; null = identity
  int64_t start, stop;             // the positions to draw
  uint64_t seed;
  int64_t first_index;             // sample index of row 0, for the random counter
  int64_t first_variable;          // the number of variable 0 in the random counter
  int64_t top_k;                   // 0 = all; else at least 1
  double top_p;                    // 1 = all; else in (0, 1)
  double temperature;              // > 0; changes the draw as head.h says, not log_prob
  const void* given;               // [B, D] compute, by variable; null if nothing is known. With a transform these are
                                   // the known values and, for the other variables, the numbers it is applied to
  const uint8_t* known;            // [B, D] by variable, non-zero = take given; null if nothing is known
  void* values;                    // [B, stop - start] compute, by position, written
  int64_t values_stride;           // distance between rows
  double* log_prob;                // [B]: sum over the drawn variables at temperature 1, written; with a transform, of
                                   // log dx/du
  Coding coding;                   // runs: values are coded, not drawn

  AR_FAST_HOST_DEVICE int64_t variable(int64_t position) const { return order ? order[position] : position; }
  AR_FAST_HOST_DEVICE Head head_at(int64_t position) const {
    return head.kinds == nullptr ? head : head.of(kinds_by_variable ? variable(position) : position);
  }
  // The variable's number in the random counter.
  AR_FAST_HOST_DEVICE uint32_t counter(int64_t position) const {
    return static_cast<uint32_t>(first_variable + variable(position));
  }
  AR_FAST_HOST_DEVICE uint64_t index(int64_t row) const { return static_cast<uint64_t>(first_index + row); }
  AR_FAST_HOST_DEVICE bool truncates() const { return top_k > 0 || top_p < 1; }
  AR_FAST_HOST_DEVICE bool is_known(int64_t row, int64_t position) const {
    return known != nullptr && known[row * variables + variable(position)] != 0;
  }
  // A pointer to the row's value in given if it is known; else null.
  template <typename T>
  AR_FAST_HOST_DEVICE const T* known_value(int64_t row, int64_t position) const {
    if (known == nullptr) return nullptr;
    const int64_t at = row * variables + variable(position);
    return known[at] != 0 ? static_cast<const T*>(given) + at : nullptr;
  }
  // The number that a transform is applied to, where the value is not known.
  template <typename T>
  AR_FAST_HOST_DEVICE T noise(int64_t row, int64_t position) const {
    return static_cast<const T*>(given)[row * variables + variable(position)];
  }
  // The value to encode; 0 when decoding.
  template <typename T>
  AR_FAST_HOST_DEVICE T value_to_encode(int64_t row, int64_t position) const {
    return coding.values == nullptr ? T(0) : static_cast<const T*>(coding.values)[row * variables + variable(position)];
  }
  // The values of a row, indexed by position.
  template <typename T>
  AR_FAST_HOST_DEVICE T* values_of(int64_t row) const {
    return static_cast<T*>(values) + row * values_stride - start;
  }
};

}  // namespace ar_fast
