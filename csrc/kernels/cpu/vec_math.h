// The vector arithmetic of the CPU kernels: loads of every storage type, horizontal sums, activations.
// The vectors are at::vec's; intrinsics are used only where at::vec is slower or lacks the operation.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "../types.h"

namespace ar_fast::CPU_CAPABILITY {

// For functions in inner loops: a call would pass its vectors through memory and stop the interleaving.
#define AR_FAST_INLINE inline __attribute__((always_inline))

// Precedes a loop over an array of vectors, which must be unrolled so that they become registers.
#define AR_FAST_UNROLL _Pragma("GCC unroll 16")

template <typename T>
using Vec = at::vec::Vectorized<T>;

// {make(0), ..., make(N - 1)}: an array of vectors that is not filled with zeros first.
template <int N, typename Make>
AR_FAST_INLINE auto vectors(const Make& make) {
  return [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    return std::array<decltype(make(std::integral_constant<int, 0>{})), N>{make(std::integral_constant<int, I>{})...};
  }(std::make_integer_sequence<int, N>{});
}

// Calls body(0), ..., body(N - 1), each with a constant: unrolled before any other optimisation, so that an array of
// vectors indexed by it becomes registers.
template <int N, typename Body>
AR_FAST_INLINE void unroll(const Body& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

template <typename T>
inline Vec<T> zero() {
  return Vec<T>(T(0));
}

inline float to_float(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline float to_float(float16 value) {
  return static_cast<float>(c10::Half(value.bits, c10::Half::from_bits()));
}

// Round to nearest even, as torch does.
inline void from_compute(float value, float& out) { out = value; }
inline void from_compute(double value, double& out) { out = value; }
inline void from_compute(float value, bfloat16& out) { out.bits = c10::BFloat16(value).x; }
inline void from_compute(float value, float16& out) { out.bits = c10::Half(value).x; }

#if defined(CPU_CAPABILITY_DEFAULT) && defined(AR_FAST_X86)
// x86 without AVX2 is rare, and its kernels take long to compile: one form of each serves both 16-bit types.
// dispatch_storage says which of them a thread works on.
#define AR_FAST_ONE_16_BIT_FORM
struct any_16_bit {
  uint16_t bits;
};
inline thread_local bool any_16_bit_is_bfloat16 = false;
inline float to_float(any_16_bit value) {
  return any_16_bit_is_bfloat16 ? to_float(bfloat16{value.bits}) : to_float(float16{value.bits});
}
inline void from_compute(float value, any_16_bit& out) {
  out.bits = any_16_bit_is_bfloat16 ? c10::BFloat16(value).x : c10::Half(value).x;
}
#endif

// --- loads: Vec<T>::size() elements, or the first `count` of them followed by zeros

AR_FAST_INLINE Vec<float> load(const float* data) { return Vec<float>::loadu(data); }
AR_FAST_INLINE Vec<double> load(const double* data) { return Vec<double>::loadu(data); }

#if defined(CPU_CAPABILITY_AVX512)
AR_FAST_INLINE Vec<float> load(const bfloat16* data) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
AR_FAST_INLINE Vec<float> load(const float16* data) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)));
}
#elif defined(CPU_CAPABILITY_AVX2)
AR_FAST_INLINE Vec<float> load(const bfloat16* data) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
AR_FAST_INLINE Vec<float> load(const float16* data) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)));
}
#else
// Not inlined: the kernels' strips have dozens of these, and a compiler would unroll the conversion of every element.
template <typename S>
__attribute__((noinline)) Vec<float> load_converted(const S* data) {
  float values[Vec<float>::size()];
  for (int i = 0; i < Vec<float>::size(); ++i) values[i] = to_float(data[i]);
  return Vec<float>::loadu(values);
}
template <typename S>
  requires(sizeof(S) == 2)
AR_FAST_INLINE Vec<float> load(const S* data) {
  return load_converted(data);
}
#endif

// As memset and memcpy, which take no null pointer, as a tensor without elements has, even for no bytes.
template <typename T>
AR_FAST_INLINE void set_zero(T* to, int64_t count) {
  if (count > 0) std::memset(static_cast<void*>(to), 0, static_cast<size_t>(count) * sizeof(T));
}

template <typename T>
AR_FAST_INLINE void copy_values(const T* from, int64_t count, T* to) {
  if (count > 0) std::memcpy(static_cast<void*>(to), from, static_cast<size_t>(count) * sizeof(T));
}

template <typename S>
AR_FAST_INLINE auto load_partial(const S* data, int64_t count) {
  using V = decltype(load(data));
  S values[V::size()] = {};
  std::memcpy(static_cast<void*>(values), data, static_cast<size_t>(count) * sizeof(S));
  return load(values);
}

#if defined(CPU_CAPABILITY_AVX512)
AR_FAST_INLINE Vec<float> load_partial(const float* data, int64_t count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), data);
}
#endif

// The same vector, loaded once: otherwise a compiler may read memory again for each use as an operand, and loads limit a
// loop of multiply-adds.
template <typename T>
AR_FAST_INLINE Vec<T> in_register(const Vec<T>& vector) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  const auto kept = [](auto value) __attribute__((always_inline)) {
    asm("" : "+v"(value));
    return value;
  };
#endif
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) return kept(static_cast<__m512>(vector));
  else return kept(static_cast<__m512d>(vector));
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, float>) return kept(static_cast<__m256>(vector));
  else return kept(static_cast<__m256d>(vector));
#else
  return vector;
#endif
}

template <typename T>
AR_FAST_INLINE T horizontal_sum(const Vec<T>& vector) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) return _mm512_reduce_add_ps(vector);
#endif
  T values[Vec<T>::size()];
  vector.store(values);
  for (int width = Vec<T>::size() / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) values[i] += values[i + width];
  }
  return values[0];
}

// Whether numbers may hold NaN: 0 times x is NaN if x is not finite, and this takes one multiply-add for each vector.
template <typename T>
bool may_hold_nan(const T* values, int64_t count) {
  constexpr int64_t lanes = Vec<T>::size();
  Vec<T> total[4] = {Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(0))};
  const Vec<T> none(T(0));
  int64_t k = 0;
  for (; k + 4 * lanes <= count; k += 4 * lanes) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) total[u] = at::vec::fmadd(Vec<T>::loadu(values + k + u * lanes), none, total[u]);
  }
  for (; k < count; k += lanes) {
    const int64_t rest = count - k < lanes ? count - k : lanes;
    total[0] = at::vec::fmadd(Vec<T>::loadu(values + k, rest), none, total[0]);
  }
  return !(horizontal_sum<T>((total[0] + total[1]) + (total[2] + total[3])) == T(0));
}

#if defined(CPU_CAPABILITY_AVX2)
// horizontal_sum of each of four vectors, by transposition.
AR_FAST_INLINE __m128 horizontal_sums(__m256 a, __m256 b, __m256 c, __m256 d) {
  const auto four = [](__m256 v) __attribute__((always_inline)) {
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  };
  const auto two = [](__m128 v, __m128 w) __attribute__((always_inline)) {
    return _mm_add_ps(_mm_movelh_ps(v, w), _mm_movehl_ps(w, v));
  };
  const __m128 ab = two(four(a), four(b)), cd = two(four(c), four(d));
  return _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xDD));
}
#endif

// horizontal_sum of each of some vectors in registers.
template <typename T, size_t N>
AR_FAST_INLINE void sum_across(const std::array<Vec<T>, N>& v, T* sums) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float> && N > 1) {
    unroll<(N + 15) / 16>([&](auto block) {
      constexpr int first = 16 * block, count = N - first < 16 ? N - first : 16, groups = (count + 3) / 4;
      // Four sums in each 128 bits of a vector: what is behind the last vector is repeated, and not stored.
      const auto four = vectors<groups>([&](auto g) -> Vec<T> {
        constexpr int at = first + 4 * g, last = N - 1;
        const __m512 a = v[at], b = v[std::min(at + 1, last)], c = v[std::min(at + 2, last)],
                     d = v[std::min(at + 3, last)];
        const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
        const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
        return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
      });
      const auto two = vectors<2>([&](auto i) -> Vec<T> {
        const __m512 a = four[std::min(2 * i, groups - 1)], b = four[std::min(2 * i + 1, groups - 1)];
        return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
      });
      const __m512 all =
          _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xDD));
      const __m512i places = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      const __m512 in_order = _mm512_permutexvar_ps(places, all);
      _mm512_mask_storeu_ps(sums + first, static_cast<__mmask16>((1u << count) - 1), in_order);
    });
    return;
  }
#endif
#if defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, float>) {
    unroll<N / 4>([&](auto i) {
      _mm_storeu_ps(sums + 4 * i, horizontal_sums(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]));
    });
    unroll<N % 4>([&](auto i) { sums[N / 4 * 4 + i] = horizontal_sum(v[N / 4 * 4 + i]); });
    return;
  }
#endif
  unroll<N>([&](auto i) { sums[i] = horizontal_sum(v[i]); });
}

// horizontal_sum of each of `count` consecutive vectors.
template <typename T>
void horizontal_sums(const T* data, int64_t count, T* sums) {
  constexpr int64_t width = Vec<T>::size();
  int64_t k = 0;
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    for (; k + 16 <= count; k += 16) {
      sum_across(vectors<16>([&](auto i) { return Vec<T>::loadu(data + (k + i) * width); }), sums + k);
    }
  }
#endif
  for (; k < count; ++k) sums[k] = horizontal_sum(Vec<T>::loadu(data + k * width));
}

// --- activations

// 1 / (1 + exp(-x)); relative error below 2e-6 on [-87, 100]; the result is below 1e-37 for x < -87; NaN stays NaN.
template <typename T>
AR_FAST_INLINE Vec<T> sigmoid(const Vec<T>& x) {
  return Vec<T>(T(1)) / (Vec<T>(T(1)) + x.neg().exp());
}

// exp(-x) for |x| below 87; relative error below 2e-7.
template <typename T>
AR_FAST_INLINE Vec<T> exp_neg(const Vec<T>& x) {
  return x.neg().exp();
}

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#define AR_FAST_FAST_SIGMOID
// exp2(f) = 1 + f p(f) on [0, 1], where p has degree 4 and is fitted for the smallest largest relative error (8e-8).
constexpr float exp2_c1 = 0.6931512951850891f, exp2_c2 = 0.24016444385051727f, exp2_c3 = 0.05579992011189461f,
                exp2_c4 = 0.009017025120556355f, exp2_c5 = 0.0018671314464882016f;
constexpr float log2e_high = 1.44269502f, log2e_low = 1.92596299e-8f;
constexpr float logistic_highest = 127.f;
#endif

// logistic_exp2 is 1 / (1 + 2^t). With t = -x log2(e) this is the sigmoid of x: a kernel that keeps its state in that
// unit needs no argument reduction. The result is below 6e-39 for t >= 127; NaN stays NaN.

#if defined(CPU_CAPABILITY_AVX512)
using FloatRegister = __m512;

// 2^f 2^n, where n is t rounded down.
AR_FAST_INLINE __m512 exp2_from_parts(__m512 f, __m512 t) {
  __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(exp2_c5), _mm512_set1_ps(exp2_c4));
  p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(exp2_c3));
  p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(exp2_c2));
  p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(exp2_c1));
  p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(p, t);
}

// Either by a division, which is right for infinity too and keeps the other units free; or by a Newton step on an
// estimate, which keeps the divider free and is only for finite numbers.
template <bool Divides>
AR_FAST_INLINE __m512 reciprocal(__m512 d) {
  if constexpr (Divides) {
    return _mm512_div_ps(_mm512_set1_ps(1.f), d);
  } else {
    const __m512 r = _mm512_rcp14_ps(d);
    return _mm512_fmadd_ps(r, _mm512_fnmadd_ps(d, r, _mm512_set1_ps(1.f)), r);
  }
}

AR_FAST_INLINE __m512 logistic_from_parts(__m512 f, __m512 t) {
  return reciprocal<false>(_mm512_add_ps(_mm512_set1_ps(1.f), exp2_from_parts(f, t)));
}

template <bool Divides>
AR_FAST_INLINE Vec<float> logistic_exp2(const Vec<float>& exponent) {
  // min returns its second operand if one is NaN; reduce is t - floor(t), and 0 if t is infinite.
  const __m512 t = Divides ? static_cast<__m512>(exponent) : _mm512_min_ps(_mm512_set1_ps(logistic_highest), exponent);
  const __m512 f = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return reciprocal<Divides>(_mm512_add_ps(_mm512_set1_ps(1.f), exp2_from_parts(f, t)));
}

// f and n with exp(-y) = 2^f 2^n. The fused products restore what rounding y log2(e) lost.
AR_FAST_INLINE void exp_neg_parts(__m512 y, __m512& f, __m512& n) {
  n = _mm512_roundscale_ps(_mm512_mul_ps(y, _mm512_set1_ps(-log2e_high)), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  f = _mm512_fnmsub_ps(y, _mm512_set1_ps(log2e_high), n);
  f = _mm512_fnmadd_ps(y, _mm512_set1_ps(log2e_low), f);
}
#elif defined(CPU_CAPABILITY_AVX2)
using FloatRegister = __m256;

// 2^f 2^n, where n is an integer; below -126 it only has to be negligible against 1.
AR_FAST_INLINE __m256 exp2_from_parts(__m256 f, __m256 n) {
  __m256 p = _mm256_fmadd_ps(f, _mm256_set1_ps(exp2_c5), _mm256_set1_ps(exp2_c4));
  p = _mm256_fmadd_ps(f, p, _mm256_set1_ps(exp2_c3));
  p = _mm256_fmadd_ps(f, p, _mm256_set1_ps(exp2_c2));
  p = _mm256_fmadd_ps(f, p, _mm256_set1_ps(exp2_c1));
  p = _mm256_fmadd_ps(f, p, _mm256_set1_ps(1.f));
  const __m256i exponent = _mm256_max_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(-126));
  return _mm256_mul_ps(
      p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23)));
}

AR_FAST_INLINE __m256 logistic_from_parts(__m256 f, __m256 n) {
  const __m256 one = _mm256_set1_ps(1.f);
  return _mm256_div_ps(one, _mm256_add_ps(one, exp2_from_parts(f, n)));
}

template <bool Divides>
AR_FAST_INLINE Vec<float> logistic_exp2(const Vec<float>& exponent) {
  const __m256 t = _mm256_max_ps(_mm256_set1_ps(-2 * logistic_highest),
                                 _mm256_min_ps(_mm256_set1_ps(logistic_highest), exponent));
  const __m256 n = _mm256_round_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return logistic_from_parts(_mm256_sub_ps(t, n), n);
}

// f and n with exp(-y) = 2^f 2^n. The fused products restore what rounding y log2(e) lost.
AR_FAST_INLINE void exp_neg_parts(__m256 y, __m256& f, __m256& n) {
  n = _mm256_round_ps(_mm256_mul_ps(y, _mm256_set1_ps(-log2e_high)), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  f = _mm256_fnmsub_ps(y, _mm256_set1_ps(log2e_high), n);
  f = _mm256_fnmadd_ps(y, _mm256_set1_ps(log2e_low), f);
}
#endif

#if defined(AR_FAST_FAST_SIGMOID)
template <>
AR_FAST_INLINE Vec<float> sigmoid(const Vec<float>& x) {
  // x is limited to where it matters: 88.02 log2(e) = 127. A NaN passes the limits.
  FloatRegister f, n;
  exp_neg_parts(at::vec::clamp(x, Vec<float>(-88.02f), Vec<float>(110.f)), f, n);
  return logistic_from_parts(f, n);
}

template <>
AR_FAST_INLINE Vec<float> exp_neg(const Vec<float>& x) {
  FloatRegister f, n;
  exp_neg_parts(x, f, n);
  return exp2_from_parts(f, n);
}
#endif

// Near zero 1 - 2 / (1 + e^2x) loses digits, so an odd polynomial is used, fitted for the least relative error (6e-8).
template <typename T>
AR_FAST_INLINE Vec<T> tanh_of(const Vec<T>& x) {
  if constexpr (std::is_same_v<T, double>) {
    return x.tanh();
  } else {
    const Vec<T> size = x.abs(), square = x * x, zeros = zero<T>();
    Vec<T> tail = at::vec::fmadd(square, Vec<T>(0.0164320096f), Vec<T>(-0.0526680276f));
    tail = at::vec::fmadd(square, tail, Vec<T>(0.133206427f));
    tail = at::vec::fmadd(square, tail, Vec<T>(-0.333329409f));
    const Vec<T> near = at::vec::fmadd(x * square, tail, x);
    const Vec<T> far = at::vec::fmadd(Vec<T>(-2.f), sigmoid<T>(size * Vec<T>(-2.f)), Vec<T>(1.f));
    return Vec<T>::blendv(Vec<T>::blendv(far, far.neg(), x < zeros), near, size < Vec<T>(0.55f));
  }
}

template <Activation A, typename T>
AR_FAST_INLINE Vec<T> activate(const Vec<T>& x) {
  if constexpr (A == Activation::sigmoid) return sigmoid<T>(x);
  else if constexpr (A == Activation::tanh) return tanh_of<T>(x);
  else return at::vec::maximum(x, zero<T>());
}

// The unit in which a kernel keeps its state: state = state_unit * pre-activation.
template <Activation A, typename T>
constexpr T state_unit() {
#if defined(AR_FAST_FAST_SIGMOID)
  if constexpr (A == Activation::sigmoid && std::is_same_v<T, float>) return -1.44269504088896340736f;
#endif
  return T(1);
}

// f(pre-activation), from a state in that unit. Every other vector should use Divides: then the divider works in
// parallel with the units that multiply and add, and neither waits.
template <Activation A, typename T, bool Divides = false>
AR_FAST_INLINE Vec<T> activate_state(const Vec<T>& state) {
#if defined(AR_FAST_FAST_SIGMOID)
  if constexpr (A == Activation::sigmoid && std::is_same_v<T, float>) return logistic_exp2<Divides>(state);
#endif
  return activate<A, T>(state);
}

// The sigmoid of a, from the odds exp(-a).
template <typename T>
AR_FAST_INLINE Vec<T> sigmoid_of_odds(const Vec<T>& odds) {
  const Vec<T> sum = Vec<T>(T(1)) + odds;
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    return reciprocal<false>(sum);
  }
#endif
  return Vec<T>(T(1)) / sum;
}

// The derivative, from the activation's value h = f(a).
template <Activation A, typename T>
AR_FAST_INLINE Vec<T> derivative_from_value(const Vec<T>& h) {
  const Vec<T> one(T(1));
#if defined(AR_FAST_FAST_SIGMOID)
  // This takes one fused instruction and rounds once.
  if constexpr (A == Activation::sigmoid) return at::vec::fmadd(h.neg(), h, h);
  else if constexpr (A == Activation::tanh) return at::vec::fmadd(h.neg(), h, one);
#else
  if constexpr (A == Activation::sigmoid) return h * (one - h);
  else if constexpr (A == Activation::tanh) return one - h * h;
#endif
  else return Vec<T>::blendv(zero<T>(), one, h > zero<T>());
}

// log(1 + e) for e in [0, 1]: e times a polynomial, fitted for the least relative error (3e-8).
AR_FAST_INLINE Vec<float> log1p_of_part(const Vec<float>& e) {
  Vec<float> p = at::vec::fmadd(e, Vec<float>(0.0052326943f), Vec<float>(-0.0295052389f));
  p = at::vec::fmadd(e, p, Vec<float>(0.0782259521f));
  p = at::vec::fmadd(e, p, Vec<float>(-0.1366324581f));
  p = at::vec::fmadd(e, p, Vec<float>(0.1910600677f));
  p = at::vec::fmadd(e, p, Vec<float>(-0.2484298218f));
  p = at::vec::fmadd(e, p, Vec<float>(0.3331909681f));
  p = at::vec::fmadd(e, p, Vec<float>(-0.4999949314f));
  return at::vec::fmadd(e * e, p, e);
}

// log(1 + exp(x)), without overflow.
template <typename T>
AR_FAST_INLINE Vec<T> softplus(const Vec<T>& x) {
  const Vec<T> positive = at::vec::maximum(x, zero<T>());
#if defined(AR_FAST_FAST_SIGMOID)
  if constexpr (std::is_same_v<T, float>) {
    // Beyond 126 log 2 e^-|x| would not be normal. The first of two numbers gives way to a NaN.
    return positive + log1p_of_part(exp_neg<float>(at::vec::minimum(Vec<float>(87.33654f), x.abs())));
  }
#endif
  return positive + x.abs().neg().exp().log1p();
}

template <typename T>
AR_FAST_INLINE T softplus(T x) {
  return (x > T(0) ? x : T(0)) + std::log1p(std::exp(-std::abs(x)));
}

// Calls body.template operator()<S, T>() for the storage type S and its compute type T.
template <typename Body>
inline void dispatch_storage(ScalarType storage, const Body& body) {
  switch (storage) {
    case ScalarType::float32: return body.template operator()<float, float>();
    case ScalarType::float64: return body.template operator()<double, double>();
#if defined(AR_FAST_ONE_16_BIT_FORM)
    case ScalarType::bfloat16:
    case ScalarType::float16:
      any_16_bit_is_bfloat16 = storage == ScalarType::bfloat16;
      return body.template operator()<any_16_bit, float>();
#else
    case ScalarType::bfloat16: return body.template operator()<bfloat16, float>();
    case ScalarType::float16: return body.template operator()<float16, float>();
#endif
  }
}

// x sigmoid(x). In float32 the sigmoid of a very negative number is not 0 but up to 6e-39, which would be felt times x.
template <typename T>
AR_FAST_INLINE Vec<T> silu(const Vec<T>& x) {
  if constexpr (std::is_same_v<T, float>) return at::vec::maximum(x, Vec<T>(-104.f)) * sigmoid<T>(x);
  else return x * sigmoid<T>(x);
}

template <typename T>
AR_FAST_INLINE Vec<T> activate(Activation activation, const Vec<T>& x) {
  const Vec<T> none = zero<T>(), one(T(1));
  switch (activation) {
    case Activation::none: break;
    case Activation::relu: return at::vec::maximum(x, none);
    case Activation::sigmoid: return sigmoid<T>(x);
    case Activation::tanh: return tanh_of<T>(x);
    case Activation::elu: return Vec<T>::blendv(x.expm1(), x, x > none);
    case Activation::softplus: return softplus<T>(x);
    case Activation::silu: return silu<T>(x);
    case Activation::gelu: return Vec<T>(T(0.5)) * x * (one + (x * Vec<T>(T(0.7071067811865475244))).erf());
    case Activation::leaky_relu: return Vec<T>::blendv(x * Vec<T>(T(0.01)), x, x > none);
  }
  return x;
}

}  // namespace ar_fast::CPU_CAPABILITY
