// What draws of many Bernoulli variables share: their uniform numbers and the logits from which on they are 1.
#pragma once

#include "../philox.h"
#include "vec_math.h"

namespace ar_fast::CPU_CAPABILITY {

// philox_uniform of one sample for the variables variable_at(0 ... count - 1), slot 0, 16 at a time: two vectors whose
// chains overlap. `out` has room for whole turns.
template <typename VariableAt>
inline void philox_uniforms(uint64_t seed, uint64_t sample, int64_t count, const VariableAt& variable_at, double* out) {
  constexpr int lanes = 8, vectors = 2;
  using Lanes = uint64_t __attribute__((vector_size(lanes * sizeof(uint64_t))));
  using Doubles = double __attribute__((vector_size(lanes * sizeof(double))));
  constexpr uint64_t word = 0xFFFFFFFFull;
  for (int64_t p = 0; p < count; p += lanes * vectors) {
    Lanes c0[vectors], c1[vectors], c2[vectors], c3[vectors];
    for (int v = 0; v < vectors; ++v) {
      c0[v] = Lanes{} + (sample & word);
      c1[v] = Lanes{} + (sample >> 32);
      c3[v] = Lanes{};
      for (int i = 0; i < lanes; ++i) {
        const int64_t q = p + v * lanes + i;
        c2[v][i] = static_cast<uint32_t>(variable_at(q < count ? q : p));
      }
    }
    uint64_t key0 = seed & word, key1 = seed >> 32;
    for (int round = 0; round < 10; ++round) {
      for (int v = 0; v < vectors; ++v) {
        const Lanes product0 = c0[v] * 0xD2511F53ull, product1 = c2[v] * 0xCD9E8D57ull;
        c0[v] = (product1 >> 32) ^ c1[v] ^ key0;
        c1[v] = product1 & word;
        c2[v] = (product0 >> 32) ^ c3[v] ^ key1;
        c3[v] = product0 & word;
      }
      key0 = (key0 + 0x9E3779B9u) & word;
      key1 = (key1 + 0xBB67AE85u) & word;
    }
    for (int v = 0; v < vectors; ++v) {
      using Signed = int64_t __attribute__((vector_size(lanes * sizeof(int64_t))));
      const Doubles bits = __builtin_convertvector(reinterpret_cast<Signed>((c0[v] << 20) | (c1[v] >> 12)), Doubles);
      const Doubles uniform = (bits + 0.5) * (1.0 / 4503599627370496.0);
      __builtin_memcpy(out + p + v * lanes, &uniform, sizeof(uniform));
    }
  }
}

// T log(u / (1 - u)): a Bernoulli variable is 1 iff this is below its logit. Off the chain from logit to logit, where
// the sigmoid of the logit would be on it. `count` is rounded up to a vector; both arrays have room.
template <typename T>
inline void bernoulli_thresholds(const double* uniform, int64_t count, T temperature, T* threshold) {
  constexpr int64_t width = Vec<T>::size();
  for (int64_t p = 0; p < count; p += width) {
    T smaller[width], sign[width];
    for (int64_t i = 0; i < width; ++i) {
      const double u = p + i < count ? uniform[p + i] : 0.5;
      smaller[i] = static_cast<T>(u < 0.5 ? u : 1 - u);
      sign[i] = u < 0.5 ? temperature : -temperature;
    }
    const Vec<T> s = Vec<T>::loadu(smaller);
    (Vec<T>::loadu(sign) * (s.log() - s.neg().log1p())).store(threshold + p);
  }
}

}  // namespace ar_fast::CPU_CAPABILITY
