// The draw at a position whose parameters are known (kernels/draws.h): of one variable of any head, or of many
// Bernoulli variables of one row or of one position, whose random numbers are computed in vectors. Where values are
// coded, coding.h takes the place of the draw.
#pragma once

#include "../draws.h"
#include "coding.h"
#include "head_math.h"

namespace ar_fast::CPU_CAPABILITY {

// --- uniform numbers: philox_uniform for slot 0, one number per lane

#if defined(CPU_CAPABILITY_AVX512)
constexpr int philox_lanes = 8;
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int philox_lanes = 4;
#else
constexpr int philox_lanes = 2;
#endif
constexpr int philox_vectors = 2;   // their dependency chains overlap
constexpr int64_t philox_turn = philox_vectors * philox_lanes;
constexpr uint64_t philox_word = 0xFFFFFFFFull;

// Each lane holds a word in its lower half; the upper half does not matter.
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

// Calls write(v, uniforms) for every vector v of a turn. make(v) sets its counters: two words of the sample, one of the
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
  // 52 bits below the exponent of 2^52 make a double without a conversion, and adding 1/2 to it is exact.
  constexpr uint64_t lower = (1ull << 52) - 1, exponent = 1075ull << 52;
  AR_FAST_UNROLL
  for (int v = 0; v < philox_vectors; ++v) {
    const Words bits = ((c0[v] << 20) & lower) | ((c1[v] & philox_word) >> 12) | exponent;
    write(v, (reinterpret_cast<Uniforms>(bits) - (4503599627370496.0 - 0.5)) * (1.0 / 4503599627370496.0));
  }
}

// Calls write(k, uniforms) for the uniform numbers of one row at the positions position_at(k), position_at(k + 1), ...
// for 0 ... count - 1 in whole turns.
template <typename PositionAt, typename Write>
inline void philox_uniforms(const Draws& draws, int64_t row, int64_t count, const PositionAt& position_at,
                            const Write& write) {
  const uint64_t sample = draws.index(row);
  for (int64_t k = 0; k < count; k += philox_turn) {
    philox_of_turn(
        draws.seed,
        [&](int v, Words& sample_low, Words& sample_high, Words& variable) {
          sample_low = Words{} + sample;
          sample_high = Words{} + (sample >> 32);
          for (int i = 0; i < philox_lanes; ++i) {
            const int64_t here = k + v * philox_lanes + i;
            variable[i] = draws.counter(position_at(here < count ? here : k));
          }
        },
        [&](int v, const Uniforms& uniforms) { write(k + v * philox_lanes, uniforms); });
  }
}

// Stores the greatest numbers of type T that are not above the uniform numbers: for float their first 24 bits, which
// convert exactly.
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

// Bounds at one position for the rows row ... row + count - 1: a Bernoulli variable is 1 iff its probability, of type
// T, is above its uniform number, which is equivalent to being above the bound. `out` has room for whole turns.
template <typename T>
inline void bernoulli_bounds(const Draws& draws, int64_t row, int64_t count, int64_t position, T* out) {
  if (draws.coding.runs()) return;
  const uint64_t first = draws.index(row);
  const uint32_t variable = draws.counter(position);
  Words ascending;
  for (int i = 0; i < philox_lanes; ++i) ascending[i] = i;
  for (int64_t r = 0; r < count; r += philox_turn) {
    philox_of_turn(
        draws.seed,
        [&](int v, Words& sample_low, Words& sample_high, Words& of_variable) {
          sample_low = ascending + (first + r + v * philox_lanes);
          sample_high = sample_low >> 32;
          of_variable = Words{} + variable;
        },
        [&](int v, const Uniforms& uniforms) { store_below(uniforms, out + r + v * philox_lanes); });
  }
}

// --- many Bernoulli variables of a row

AR_FAST_INLINE void store_rounded(const Uniforms& uniforms, float* out) {
  using Floats = float __attribute__((vector_size(philox_lanes * sizeof(float))));
  const Floats rounded = __builtin_convertvector(uniforms, Floats);
  __builtin_memcpy(out, &rounded, sizeof(rounded));
}

AR_FAST_INLINE void store_rounded(const Uniforms& uniforms, double* out) {
  __builtin_memcpy(out, &uniforms, sizeof(uniforms));
}

// T log(u / (1 - u)), at the positions position_at(0 ... count - 1): a Bernoulli variable is 1 iff this is below its
// logit. It can be computed before the logit is known, whereas the logit's sigmoid would delay the next logit. `count`
// is rounded up to a turn and to a vector, and `threshold` has room for that.
template <typename T, typename PositionAt>
inline void bernoulli_thresholds(const Draws& draws, int64_t row, int64_t count, const PositionAt& position_at,
                                 T* threshold) {
  if (draws.coding.runs()) return;
  // First the smaller of u and 1 - u, rounded; its sign tells which.
  philox_uniforms(draws, row, count, position_at, [&](int64_t k, const Uniforms& u) __attribute__((always_inline)) {
    store_rounded(u < 0.5 ? u : u - 1, threshold + k);
  });
  const Vec<T> temperature(static_cast<T>(draws.temperature)), one(T(1));
  for (int64_t k = 0; k < count; k += Vec<T>::size()) {
    const Vec<T> smaller = Vec<T>::loadu(threshold + k), size = smaller.abs();
    const Vec<T> below = temperature * (size / (one - size)).log();
    Vec<T>::blendv(below, below.neg(), smaller < zero<T>()).store(threshold + k);
  }
}

// The value of a row at a position: the known or coded one, or 1 iff the logit is above the threshold.
template <typename T>
AR_FAST_INLINE T bernoulli_value(const Draws& draws, int64_t row, int64_t position, T threshold, T logit) {
  if (const T* known = draws.known_value<T>(row, position)) return *known;
  if (draws.coding.runs()) return code_bernoulli(draws, row, position, logit);
  return threshold < logit ? T(1) : T(0);
}

// In double, in eight sums at once.
template <typename T>
inline double sum_of(const T* terms, int64_t count) {
  double sums[8] = {};
  for (int64_t k = 0; k + 8 <= count; k += 8) {
    for (int i = 0; i < 8; ++i) sums[i] += static_cast<double>(terms[k + i]);
  }
  for (int64_t k = count / 8 * 8; k < count; ++k) sums[k % 8] += static_cast<double>(terms[k]);
  for (int half = 4; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// Adds log p of the values drawn at `count` positions from `first`; terms: [count] scratch.
template <typename T>
inline void add_bernoulli_log_prob(const Draws& draws, int64_t row, int64_t first, int64_t count, const T* logits,
                                   const T* x, T* terms, double& log_prob) {
  bernoulli_log_prob(logits, x, count, terms);
  if (draws.known == nullptr) {
    log_prob += sum_of(terms, count);
    return;
  }
  for (int64_t k = 0; k < count; ++k) {
    if (!draws.is_known(row, first + k)) log_prob += static_cast<double>(terms[k]);
  }
}

// --- one variable of any head

// Categories in descending order of probability, by a heap.
template <typename T>
class LikeliestFirst {
 public:
  // categories: [count] scratch. Those not taken yet come before left(); those taken are stored backwards from the end.
  LikeliestFirst(const T* logits, int64_t count, int32_t* categories)
      : logits_(logits), categories_(categories), count_(count), left_(count) {
    for (int64_t k = 0; k < count; ++k) categories_[k] = static_cast<int32_t>(k);
    for (int64_t k = count / 2 - 1; k >= 0; --k) sink(k);
  }
  // The i-th likeliest; calls must be in ascending order of i.
  int32_t operator[](int64_t i) {
    if (count_ - left_ <= i) {
      const int32_t next = categories_[0];
      categories_[0] = categories_[--left_];
      sink(0);
      categories_[left_] = next;
    }
    return categories_[count_ - 1 - i];
  }

 private:
  bool before(int32_t a, int32_t b) const { return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b); }
  void sink(int64_t k) {
    const int32_t own = categories_[k];
    for (int64_t child = 2 * k + 1; child < left_; k = child, child = 2 * k + 1) {
      child += child + 1 < left_ && before(categories_[child + 1], categories_[child]);
      if (!before(categories_[child], own)) break;
      categories_[k] = categories_[child];
      categories_[child] = own;
    }
  }

  const T* logits_;
  int32_t* categories_;
  const int64_t count_;
  int64_t left_;
};

// Sets the weights of the categories that top_k and top_p exclude to 0 (kernels/draws.h). categories: [count] scratch.
template <typename T>
inline void truncate_weights(const Draws& draws, const T* logits, int64_t count, T* weights, int32_t* categories) {
  LikeliestFirst<T> likeliest(logits, count, categories);
  const int64_t most = draws.top_k > 0 ? draws.top_k : count;
  int64_t kept = most;
  if (draws.top_p < 1) {
    double total = 0, sum = 0;
    for (int64_t i = 0; i < most; ++i) total += static_cast<double>(weights[draws.top_k > 0 ? likeliest[i] : i]);
    for (kept = 0; kept < most && (kept == 0 || sum < draws.top_p * total); ++kept) {
      sum += static_cast<double>(weights[likeliest[kept]]);
    }
  } else {
    for (int64_t i = 0; i < most; ++i) likeliest[i];
  }
  for (int64_t i = 0; i < count - kept; ++i) weights[categories[i]] = T(0);
}

// The first k whose running sum of weights exceeds the share `uniform` of the total.
template <typename T>
inline int64_t choose_category(const T* weights, int64_t count, double uniform) {
  double total = 0, sum = 0;
  for (int64_t k = 0; k < count; ++k) total += static_cast<double>(weights[k]);
  const double bound = uniform * total;
  int64_t last = 0;
  for (int64_t k = 0; k < count; ++k) {
    if (weights[k] > T(0)) last = k;
    sum += static_cast<double>(weights[k]);
    if (sum > bound) return k;
  }
  return last;  // rounding left the sum at the bound
}

// A draw from the `rows` parameters of a variable; weights: scratch as in draw_value.
template <typename T>
inline T draw_from(const Draws& draws, const Head& head, int64_t row, int64_t position, const T* parameters,
                   int64_t rows, T* weights) {
  const T temperature = static_cast<T>(draws.temperature);
  const auto noise = [&](uint32_t slot) {
    return philox_uniform(draws.seed, draws.index(row), draws.counter(position), slot);
  };
  const double uniform = noise(0);
  if (head.kind == HeadKind::bernoulli) {
    T probability[Vec<T>::size()];
    sigmoid<T>(Vec<T>(parameters[0] / temperature)).store(probability);
    return uniform < static_cast<double>(probability[0]) ? T(1) : T(0);
  }
  if (head.kind == HeadKind::categorical) {
    category_weights(parameters, rows, temperature, weights);
    if (draws.truncates()) {
      truncate_weights(draws, parameters, rows, weights, reinterpret_cast<int32_t*>(weights + rows));
    }
    return static_cast<T>(choose_category(weights, rows, uniform));
  }
  const Mixture<T> mixture(head, parameters, rows);
  category_weights(mixture.logits, mixture.count, temperature, weights);
  const int64_t k = choose_category(weights, mixture.count, uniform);
  const double mean = mixture.means[k], u1 = noise(1), t = temperature;
  const double raw = mixture.log_scales[k];
  const double scale = std::exp(raw < head_minimum_log_scale ? head_minimum_log_scale : raw);
  if (head.kind == HeadKind::gaussian_mixture) {
    const double u2 = noise(2);
    return static_cast<T>(mean + scale * std::sqrt(t) * std::sqrt(-2 * std::log(u1)) *
                                     std::cos(6.283185307179586476925 * u2));
  }
  const double value = mean + scale * t * (std::log(u1) - std::log1p(-u1));
  const double steps = static_cast<double>(head.levels - 1);
  const double level = std::nearbyint((value + 1) / 2 * steps);
  return static_cast<T>(2 * (level < 0 ? 0 : level > steps ? steps : level) / steps - 1);
}

// The value of a row at a position, from the parameters of its variable: the known value, a coded or a drawn one.
// Writes log p of a drawn value, and 0 for the others. weights: [rows] scratch, or [2 rows] if draws are truncated.
template <typename T>
inline T draw_value(const Draws& draws, int64_t row, int64_t position, const T* parameters, int64_t rows, T* weights,
                    T& log_prob) {
  log_prob = T(0);
  if (const T* known = draws.known_value<T>(row, position)) return *known;
  if (draws.coding.runs()) return code_value(draws, row, position, parameters, rows, weights);
  const Head head = draws.head_at(position);
  const T x = draw_from(draws, head, row, position, parameters, rows, weights);
  log_prob = head_log_prob_one(head, parameters, rows, x);
  return x;
}

}  // namespace ar_fast::CPU_CAPABILITY
