// What a machine can do at most, for bench/peaks.py: each function works for a while on one thread, and returns nothing
// that matters. Compiled with the flags of one of the kernels' instruction sets.
#include <cstdint>
#include <cstring>

#include "../csrc/kernels/cpu/vec_math.h"

namespace kernels = ar_fast::CPU_CAPABILITY;
using V = at::vec::Vectorized<float>;

extern "C" {

// Multiply-adds of `width() * 12 * times` numbers, in 12 chains that do not wait for one another.
void multiply_adds(int64_t times, float* out) {
  std::array<V, 12> sums;
  for (int i = 0; i < 12; ++i) sums[i] = V(float(i));
  const V a = kernels::in_register<float>(V(0.999f)), b = kernels::in_register<float>(V(1e-3f));
  for (int64_t k = 0; k < times; ++k) {
    kernels::unroll<12>([&](auto i) __attribute__((always_inline)) {
      sums[i] = kernels::in_register<float>(at::vec::fmadd(sums[i], a, b));
    });
  }
  V all = sums[0];
  for (int i = 1; i < 12; ++i) all = all + sums[i];
  all.store(out);
}

int64_t width() { return V::size(); }

// Sigmoids of `count` numbers, a multiple of 4 width(), as the NADE kernels take them: from a state in the cache, two of
// four vectors by division, and summed up.
void sigmoids(const float* data, int64_t count, int64_t times, float* out) {
  constexpr auto sigmoid = ar_fast::Activation::sigmoid;
  std::array<V, 4> sums{V(0.f), V(0.f), V(0.f), V(0.f)};
  for (int64_t k = 0; k < times; ++k) {
    for (int64_t j = 0; j < count; j += 4 * V::size()) {
      kernels::unroll<4>([&](auto i) __attribute__((always_inline)) {
        sums[i] = sums[i] + kernels::activate_state<sigmoid, float, i % 2 == 1>(V::loadu(data + j + i * V::size()));
      });
    }
  }
  ((sums[0] + sums[1]) + (sums[2] + sums[3])).store(out);
}

void copies(float* to, const float* from, int64_t count, int64_t times) {
  for (int64_t k = 0; k < times; ++k) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
    asm volatile("" : : "r"(to) : "memory");
  }
}

// Reads numbers, a multiple of 4 width().
void reads(const float* data, int64_t count, int64_t times, float* out) {
  std::array<V, 4> sums{V(0.f), V(0.f), V(0.f), V(0.f)};
  for (int64_t k = 0; k < times; ++k) {
    for (int64_t j = 0; j < count; j += 4 * V::size()) {
      kernels::unroll<4>([&](auto i) __attribute__((always_inline)) {
        sums[i] = sums[i] + V::loadu(data + j + i * V::size());
      });
    }
    asm volatile("" : : : "memory");
  }
  ((sums[0] + sums[1]) + (sums[2] + sums[3])).store(out);
}
}
