// What draws of many Bernoulli variables share: their uniform numbers and the logits from which on they are 1.
#pragma once

#include "../philox.h"
#include "vec_math.h"

namespace ar_fast::CPU_CAPABILITY {

// --- uniform numbers: philox_uniform for slot 0, a lane each

#if defined(CPU_CAPABILITY_AVX512)
constexpr int philox_lanes = 8;
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int philox_lanes = 4;
#else
constexpr int philox_lanes = 2;
#endif
constexpr int philox_vectors = 2;   // whose chains overlap
constexpr int64_t philox_turn = philox_vectors * philox_lanes;
constexpr uint64_t philox_word = 0xFFFFFFFFull;

// Each lane holds a word in its lower half; what is in the upper half does not matter.
using Words = uint64_t __attribute__((vector_size(philox_lanes * sizeof(uint64_t))));
using Uniforms = double __attribute__((vector_size(philox_lanes * sizeof(double))));

AR_FAST_INLINE Words multiply_words(const Words& a, uint64_t b) {
#if defined(CPU_CAPABILITY_AVX512)
  return reinterpret_cast<Words>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
#elif defined(CPU_CAPABILITY_AVX2)
  return reinterpret_cast<Words>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#else
  return (a & philox_word) * b;
#endif
}

// write(v, uniforms) for every vector v of a turn, whose counters make(v) sets: two words of the sample, one of the
// variable.
template <typename Make, typename Write>
AR_FAST_INLINE void philox_of_turn(uint64_t seed, const Make& make, const Write& write) {
  Words c0[philox_vectors], c1[philox_vectors], c2[philox_vectors], c3[philox_vectors];
  AR_FAST_UNROLL
  for (int v = 0; v < philox_vectors; ++v) {
    make(v, c0[v], c1[v], c2[v]);
    c3[v] = Words{};
  }
  uint64_t key0 = seed & philox_word, key1 = seed >> 32;
  for (int round = 0; round < 10; ++round) {
    AR_FAST_UNROLL
    for (int v = 0; v < philox_vectors; ++v) {
      const Words product0 = multiply_words(c0[v], 0xD2511F53ull), product1 = multiply_words(c2[v], 0xCD9E8D57ull);
      c0[v] = (product1 >> 32) ^ c1[v] ^ key0;
      c1[v] = product1;
      c2[v] = (product0 >> 32) ^ c3[v] ^ key1;
      c3[v] = product0;
    }
    key0 = (key0 + 0x9E3779B9u) & philox_word;
    key1 = (key1 + 0xBB67AE85u) & philox_word;
  }
  // 52 bits below the exponent of 2^52 make a double without a conversion, and its sum with 1/2 is exact.
  constexpr uint64_t lower = (1ull << 52) - 1, exponent = 1075ull << 52;
  AR_FAST_UNROLL
  for (int v = 0; v < philox_vectors; ++v) {
    const Words bits = ((c0[v] << 20) & lower) | ((c1[v] & philox_word) >> 12) | exponent;
    write(v, (reinterpret_cast<Uniforms>(bits) - (4503599627370496.0 - 0.5)) * (1.0 / 4503599627370496.0));
  }
}

// Of one sample, for the variables variable_at(0 ... count - 1). `out` has room for whole turns.
template <typename VariableAt>
inline void philox_uniforms(uint64_t seed, uint64_t sample, int64_t count, const VariableAt& variable_at, double* out) {
  for (int64_t p = 0; p < count; p += philox_turn) {
    philox_of_turn(
        seed,
        [&](int v, Words& sample_low, Words& sample_high, Words& variable) {
          sample_low = Words{} + sample;
          sample_high = Words{} + (sample >> 32);
          for (int i = 0; i < philox_lanes; ++i) {
            const int64_t q = p + v * philox_lanes + i;
            variable[i] = static_cast<uint32_t>(variable_at(q < count ? q : p));
          }
        },
        [&](int v, const Uniforms& uniforms) {
          __builtin_memcpy(out + p + v * philox_lanes, &uniforms, sizeof(uniforms));
        });
  }
}

// The greatest numbers of type T that are not above the uniform ones: their first 24 digits for float, whose conversion
// is exact.
AR_FAST_INLINE void store_below(const Uniforms& uniforms, float* out) {
  using Floats = float __attribute__((vector_size(philox_lanes * sizeof(float))));
  constexpr uint64_t digits = ~((1ull << 29) - 1);
  const Words cut = reinterpret_cast<Words>(uniforms) & digits;
  const Floats below = __builtin_convertvector(reinterpret_cast<Uniforms>(cut), Floats);
  __builtin_memcpy(out, &below, sizeof(below));
}

AR_FAST_INLINE void store_below(const Uniforms& uniforms, double* out) {
  __builtin_memcpy(out, &uniforms, sizeof(uniforms));
}

// Of one variable, for the samples numbered first ... first + count - 1: a Bernoulli variable is 1 iff its probability,
// of type T, is above its uniform number, which is iff it is above the bound. `out` has room for whole turns.
template <typename T>
inline void philox_bounds(uint64_t seed, uint64_t first, int64_t count, uint32_t variable, T* out) {
  Words ascending;
  for (int i = 0; i < philox_lanes; ++i) ascending[i] = i;
  for (int64_t r = 0; r < count; r += philox_turn) {
    philox_of_turn(
        seed,
        [&](int v, Words& sample_low, Words& sample_high, Words& of_variable) {
          sample_low = ascending + (first + r + v * philox_lanes);
          sample_high = sample_low >> 32;
          of_variable = Words{} + variable;
        },
        [&](int v, const Uniforms& uniforms) { store_below(uniforms, out + r + v * philox_lanes); });
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
