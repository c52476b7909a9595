// Powers of two by a table, for sigmoids whose arguments are known to be bounded.
#pragma once

#include <array>
#include <bit>

#include "vec_math.h"

namespace ar_fast::CPU_CAPABILITY {

#if defined(AR_FAST_FAST_SIGMOID)
// 2^t = 2^(k / parts) p(t - k / parts) for |t| <= 126, k / parts the nearest to t. The power is looked up, p is a short
// polynomial, fitted for the least relative error (6e-8). Neither limits nor a scaling are needed: this takes half the
// multiply-adds of logistic_exp2. Entry k of the table lacks the k that the shift leaves in the mantissa.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int exp2_parts = 32;
#else
constexpr int exp2_parts = 8;   // of one vector
#endif
constexpr int exp2_shift = exp2_parts == 32 ? 18 : 20;   // 2^23 / exp2_parts
constexpr float exp2_rounder = 1.5f * (1 << exp2_shift);   // adding it rounds to multiples of 1 / exp2_parts

alignas(64) inline constexpr std::array<int32_t, exp2_parts> exp2_table = [] {
  // The square roots of 2 by Newton's method, which std::sqrt cannot do at compile time.
  double root = 2;
  for (int parts = 1; parts < exp2_parts; parts *= 2) {
    const double square = root;
    for (int i = 0; i < 8; ++i) root = (root + square / root) / 2;
  }
  std::array<int32_t, exp2_parts> table{};
  double power = 1;
  for (int k = 0; k < exp2_parts; ++k, power *= root) {
    table[k] = std::bit_cast<int32_t>(static_cast<float>(power)) - (k << exp2_shift);
  }
  return table;
}();

// 2^(k / exp2_parts) for a `rounded` t of k / exp2_parts.
AR_FAST_INLINE Vec<float> exp2_of_rounded(const Vec<float>& rounded) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512i bits = _mm512_castps_si512(rounded);
  const __m512i power = _mm512_permutex2var_epi32(_mm512_load_si512(exp2_table.data()), bits,
                                                  _mm512_load_si512(exp2_table.data() + 16));
  return _mm512_castsi512_ps(_mm512_add_epi32(power, _mm512_slli_epi32(bits, exp2_shift)));
#else
  const __m256i bits = _mm256_castps_si256(rounded);
  const __m256i power = _mm256_permutevar8x32_epi32(
      _mm256_load_si256(reinterpret_cast<const __m256i*>(exp2_table.data())), bits);
  return _mm256_castsi256_ps(_mm256_add_epi32(power, _mm256_slli_epi32(bits, exp2_shift)));
#endif
}

// 1 + 2^t of several vectors, relative error below 2e-7. Step by step, as each waits for the one before.
template <size_t N>
AR_FAST_INLINE std::array<Vec<float>, N> one_plus_exp2(const std::array<Vec<float>, N>& t) {
  const Vec<float> one(1.f), rounder(exp2_rounder);
  const auto step = [](const auto& make) __attribute__((always_inline)) {
    return vectors<N>([&](auto u) { return in_register<float>(make(u)); });
  };
  const auto rounded = step([&](auto u) { return t[u] + rounder; });
  const auto nearest = step([&](auto u) { return rounded[u] - rounder; });
  const auto scale = step([&](auto u) { return exp2_of_rounded(rounded[u]); });
  const auto rest = step([&](auto u) { return t[u] - nearest[u]; });
#if defined(CPU_CAPABILITY_AVX512)
  const auto p = step([&](auto u) {
    return at::vec::fmadd(rest[u], Vec<float>(0.24022653698921204f), Vec<float>(0.6931573152542114f));
  });
#else
  const auto tail = step([&](auto u) {
    return at::vec::fmadd(rest[u], Vec<float>(0.0554962232708931f), Vec<float>(0.2402576357126236f));
  });
  const auto p = step([&](auto u) { return at::vec::fmadd(rest[u], tail[u], Vec<float>(0.6931472420692444f)); });
#endif
  const auto power = step([&](auto u) { return at::vec::fmadd(rest[u], p[u], one); });
  return step([&](auto u) { return at::vec::fmadd(scale[u], power[u], one); });
}
#endif

}  // namespace ar_fast::CPU_CAPABILITY
