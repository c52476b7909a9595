// Range coding: an event as one number in [0, 1), which each symbol narrows to its interval. Words have 32 bits and the
// state 64, as in constriction's stream.queue.RangeEncoder and RangeDecoder, whose words these are, except that zero
// words at the end are left out. Integers only, so that both directions agree everywhere.
//
// Source: Martin, "Range encoding: an algorithm for removing redundancy from a digitised message", 1979; Bamler,
// "Understanding entropy coding with asymmetric numeral systems", arXiv:2201.01741, 2022 (constriction).
#pragma once

#include "types.h"

namespace ar_fast {

// A symbol's share of all: [cumulative, cumulative + frequency) of 2^precision. One that has all of them costs nothing.
struct Interval {
  uint32_t cumulative, frequency;
  int32_t precision;
};

constexpr int range_word_bits = 32;
constexpr uint64_t range_least = 1ull << range_word_bits;  // a range below it takes the next word

// How finely the intervals of a variable with this many symbols, at most 2^20, are measured. Few bits leave the least
// likely symbols too much, many bits lose the rest of a division: this is where the losses are about equal.
constexpr int64_t range_most_symbols = 1 << 20;
AR_FAST_HOST_DEVICE inline int32_t range_precision(int64_t symbols) {
  int32_t bits = 0;
  while ((int64_t{1} << bits) < symbols) ++bits;
  return 19 + bits / 2;
}

// The integer CDF, in one function for both directions: where symbol number `symbol` begins, if all symbols before it
// have together the probability `share`. Every symbol has at least one part of 2^precision: two are set aside for each,
// and rounded shares do not fall by more than one. What is no number counts as a uniform distribution.
inline uint32_t range_bound(int64_t symbol, double share, int64_t symbols, int32_t precision) {
  const int64_t all = int64_t{1} << precision;
  if (symbol <= 0) return 0;
  if (symbol >= symbols) return static_cast<uint32_t>(all);
  if (!(share == share)) share = static_cast<double>(symbol) / static_cast<double>(symbols);
  share = share < 0 ? 0 : share > 1 ? 1 : share;
  return static_cast<uint32_t>(2 * symbol + static_cast<int64_t>(share * static_cast<double>(all - 2 * symbols)));
}

struct RangeDecoder {
  const uint8_t* next = nullptr;  // whole words, the lowest byte first; behind the end there are zeros
  const uint8_t* end = nullptr;
  uint64_t range = ~0ull;
  uint64_t offset = 0;            // of the number from the lower end of the range

  uint64_t word() {
    if (next == end) return 0;
    uint64_t result = 0;
    for (int i = 3; i >= 0; --i) result = result << 8 | next[i];
    next += 4;
    return result;
  }
  void begin(const uint8_t* words, int64_t count) {
    next = words;
    end = words + 4 * count;
    range = ~0ull;
    offset = word() << range_word_bits;
    offset |= word();
  }
  // Which of the 2^precision the number lies in; in a damaged stream perhaps none, which counts as the last.
  uint32_t quantile(int32_t precision) const {
    const uint64_t found = offset / (range >> precision), last = (1ull << precision) - 1;
    return static_cast<uint32_t>(found < last ? found : last);
  }
  void take(const Interval& interval) {
    const uint64_t scale = range >> interval.precision;
    offset -= scale * interval.cumulative;
    range = scale * interval.frequency;
    if (range < range_least) {
      range <<= range_word_bits;
      offset = offset << range_word_bits | word();
    }
  }
};

}  // namespace ar_fast
