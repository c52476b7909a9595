// Threads that go through the positions of a sample together, each with its share of the work.
#pragma once

#include <cstdint>

namespace ar_fast {

struct Range {
  int64_t begin, end;
};

struct Team {
  int64_t parts, part;
  void (*meet)();                  // until all parts are here; not called where there is one

  void wait() const {
    if (parts > 1) meet();
  }
  // This part's share of `count`, in units of `step`.
  Range share(int64_t count, int64_t step) const {
    const int64_t steps = (count + step - 1) / step;
    const int64_t begin = steps * part / parts * step, end = steps * (part + 1) / parts * step;
    return {begin < count ? begin : count, end < count ? end : count};
  }
};

// The bytes that a kernel of a team works in, aligned to 64.
struct TeamLayout {
  int64_t shared_bytes;            // of the team
  int64_t own_bytes;               // of each part
};

}  // namespace ar_fast
