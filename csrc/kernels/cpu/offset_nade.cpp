// Offset NADE sampling: one pixel after another, one row of the batch at a time. The weights are few and stay in the
// cache; a strip of pre-activations stays in registers while all taps of its pixel are added. The values of a row of
// taps are contiguous, and so are their weights.
#include <array>
#include <limits>
#include <utility>

#include "draws.h"
#include "nade_strip.h"
#include "offset_nade_cpu.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int weights_together = 4;

// Adjacent neighbours: `count` values of the history, and the first of their rows of in_weight.
struct Segment {
  int64_t position, count, weight_row;
};

// h = f(a) for `count` units, a whole number of vectors.
template <Activation A, typename T>
void activate_units(const T* a, int64_t count, T* h) {
  for (int64_t j = 0; j < count; j += Vec<T>::size()) activate<A, T>(Vec<T>::loadu(a + j)).store(h + j);
}

template <typename S, typename T>
class OffsetSampler {
 public:
  using Activate = void (*)(const T* a, int64_t count, T* h);

  OffsetSampler(const OffsetNadeSample& sample, Activate activate, Scratch& scratch)
      : s_(sample), draws_(sample.draws), activate_(activate),
        padded_((sample.hidden + strip_width<T>() - 1) / strip_width<T>() * strip_width<T>()) {
    a_ = scratch.take<T>(padded_);
    h_ = scratch.take<T>(padded_);
    parameters_ = scratch.take<T>(sample.parameters);
    weights_ = scratch.take<T>(sample.parameters);
    segments_ = scratch.take<Segment>(sample.up + 1);
  }

  void row(int64_t row) {
    // history[p] is the value at position p.
    T* history = draws_.values_of<T>(row);
    double log_prob = 0;
    for (int64_t p = draws_.start; p < draws_.stop; ++p) {
      const int64_t channel = p % s_.channels, variable = draws_.variable(p);
      if (channel == 0 || p == draws_.start) {
        neighbourhood(row, history, p - channel);
        for (int64_t s = 0; s < channel; ++s) add_center(s, history[p - channel + s]);
      } else {
        add_center(channel - 1, history[p - 1]);
      }
      if (const T* known = draws_.known_value<T>(row, p)) {
        history[p] = *known;
        continue;
      }
      activate_(a_, padded_, h_);
      output((s_.shared_output ? channel : variable) * s_.parameters);
      T own;
      history[p] = draw_value(draws_, row, p, parameters_, s_.parameters, weights_, own);
      log_prob += static_cast<double>(own);
    }
    draws_.log_prob[row] = log_prob;
  }

 private:
  const S* in_row(int64_t row) const {
    return static_cast<const S*>(s_.in_weight) + row * s_.values_per_input * s_.hidden;
  }

  // Which of the rows of its input a value adds, and its factor.
  AR_FAST_INLINE std::pair<int64_t, T> added(T x) const {
    if (!s_.gathers) return {0, x};
    if (!is_category(x, s_.values_per_input)) return {0, std::numeric_limits<T>::quiet_NaN()};
    return {static_cast<int64_t>(x), T(1)};
  }

  // The rows of taps that lie on the grid, from the pixel at position p.
  int64_t find_segments(int64_t p) {
    const int64_t pixel = p / s_.channels, r = pixel / s_.columns, c = pixel % s_.columns;
    int64_t found = 0;
    for (int64_t i = r < s_.up ? s_.up - r : 0; i <= s_.up; ++i) {
      const int64_t left = c < s_.side ? c : s_.side;
      const int64_t right = i == s_.up ? -1 : c + s_.side < s_.columns ? s_.side : s_.columns - 1 - c;
      if (left + right + 1 <= 0) continue;
      segments_[found++] = {p - ((s_.up - i) * s_.columns + left) * s_.channels, (left + right + 1) * s_.channels,
                            (i * (2 * s_.side + 1) + s_.side - left) * s_.channels};
    }
    return found;
  }

  AR_FAST_INLINE void neighbourhood_strip(const T* bias, const T* history, int64_t segments, int64_t j, int64_t units) {
    Strip<T> a = load_strip<T>(bias + j, units);
    for (int64_t i = 0; i < segments; ++i) {
      const T* x = history + segments_[i].position;
      const S* weight = in_row(segments_[i].weight_row) + j;
      for (int64_t k = 0; k < segments_[i].count; ++k, weight += s_.values_per_input * s_.hidden) {
        const auto [row, factor] = added(x[k]);
        add_scaled(load_strip<T>(weight + row * s_.hidden, units), factor, a);
      }
    }
    store_vectors(a, a_ + j);
  }

  void neighbourhood(int64_t row, const T* history, int64_t p) {
    const T* bias = static_cast<const T*>(s_.in_bias) + row * s_.in_bias_stride;
    const int64_t segments = find_segments(p);
    constexpr int64_t strip = strip_width<T>();
    int64_t j = 0;
    for (; j + strip <= s_.hidden; j += strip) neighbourhood_strip(bias, history, segments, j, strip);
    if (j < s_.hidden) neighbourhood_strip(bias, history, segments, j, s_.hidden - j);
  }

  // a += x in_weight[row of (T, channel)].
  void add_center(int64_t channel, T x) {
    const S* weight = in_row(s_.taps() * s_.channels + channel);
    const auto [row, factor] = added(x);
    weight += row * s_.hidden;
    constexpr int64_t strip = strip_width<T>();
    const auto add = [&](int64_t j, int64_t units) __attribute__((always_inline)) {
      Strip<T> a = load_vectors(a_ + j);
      add_scaled(load_strip<T>(weight + j, units), factor, a);
      store_vectors(a, a_ + j);
    };
    int64_t j = 0;
    for (; j + strip <= s_.hidden; j += strip) add(j, strip);
    if (j < s_.hidden) add(j, s_.hidden - j);
  }

  // The parameters of the rows first ... first + K - 1: lanes of two chains of vectors, then across.
  template <int Weights>
  AR_FAST_INLINE void dots(int64_t first, T* result) {
    constexpr int64_t width = Vec<T>::size(), strip = strip_width<T>();
    const S* weight = static_cast<const S*>(s_.out_weight) + first * s_.hidden;
    Vec<T> sums[Weights][2];
    for (auto& sum : sums) sum[0] = sum[1] = zero<T>();
    const auto add = [&]<bool Ragged>(int64_t j, int64_t units) __attribute__((always_inline)) {
      AR_FAST_UNROLL
      for (int u = 0; u < strip_vectors; ++u) {
        const Vec<T> value = Vec<T>::loadu(h_ + j + u * width);
        AR_FAST_UNROLL
        for (int k = 0; k < Weights; ++k) {
          const Vec<T> w = load_strip_vector<Ragged, T>(weight + k * s_.hidden + j, u, units);
          sums[k][u % 2] = at::vec::fmadd(value, w, sums[k][u % 2]);
        }
      }
    };
    int64_t j = 0;
    for (; j + strip <= s_.hidden; j += strip) add.template operator()<false>(j, strip);
    if (j < s_.hidden) add.template operator()<true>(j, s_.hidden - j);
    AR_FAST_UNROLL
    for (int k = 0; k < Weights; ++k) {
      result[k] = static_cast<const T*>(s_.out_bias)[first + k] + horizontal_sum(sums[k][0] + sums[k][1]);
    }
  }

  void output(int64_t first) {
    int64_t k = 0;
    for (; k + weights_together <= s_.parameters; k += weights_together) {
      dots<weights_together>(first + k, parameters_ + k);
    }
    for (; k < s_.parameters; ++k) dots<1>(first + k, parameters_ + k);
  }

  const OffsetNadeSample& s_;
  const Draws& draws_;
  const Activate activate_;
  const int64_t padded_;
  T *a_, *h_, *parameters_, *weights_;
  Segment* segments_;
};

}  // namespace

void offset_nade_layout(const OffsetNadeSample& sample, int64_t* scratch_bytes) {
  dispatch_nade(sample, [&]<typename S, typename T, Activation A>() {
    Scratch scratch(nullptr);
    const OffsetSampler<S, T> sampler(sample, &activate_units<A, T>, scratch);
    *scratch_bytes = scratch.bytes_taken();
  });
}

void offset_nade_sample(const OffsetNadeSample& sample, int64_t row_begin, int64_t row_end, void* scratch_memory) {
  dispatch_nade(sample, [&]<typename S, typename T, Activation A>() {
    Scratch scratch(scratch_memory);
    OffsetSampler<S, T> sampler(sample, &activate_units<A, T>, scratch);
    for (int64_t row = row_begin; row < row_end; ++row) sampler.row(row);
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
