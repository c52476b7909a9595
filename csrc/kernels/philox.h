// Philox4x32-10, a counter-based random generator: it gives the same numbers on every device and in any order.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include "types.h"

namespace ar_fast {

struct PhiloxBlock {
  uint32_t word[4];
};

AR_FAST_HOST_DEVICE inline PhiloxBlock philox4x32(uint64_t key, PhiloxBlock counter) {
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = 0xD2511F53ull * counter.word[0];
    const uint64_t product1 = 0xCD9E8D57ull * counter.word[2];
    counter = PhiloxBlock{{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                           static_cast<uint32_t>(product1),
                           static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                           static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// A uniform number strictly inside (0, 1) on a grid of 2^-52, which a double represents exactly.
// counter = (sample index, variable index, draw slot); key = seed.
AR_FAST_HOST_DEVICE inline double philox_uniform(uint64_t seed, uint64_t sample, uint32_t variable,
                                                 uint32_t slot) {
  const PhiloxBlock block =
      philox4x32(seed, PhiloxBlock{{static_cast<uint32_t>(sample),
                                    static_cast<uint32_t>(sample >> 32), variable, slot}});
  const uint64_t bits = (static_cast<uint64_t>(block.word[0]) << 20) | (block.word[1] >> 12);
  return (static_cast<double>(bits) + 0.5) * (1.0 / 4503599627370496.0);
}

}  // namespace ar_fast
