// Offset NADE sampling, one pixel after another or along wavefronts. The weights are few and stay in the cache; a strip
// of pre-activations stays in registers while all taps of its pixel are added. The values of a row of taps are
// contiguous, and so are their weights.
//
// Pixels of a wavefront lie in adjacent rows of the image, each `side` + 1 columns behind the one above. A weight that
// was loaded serves a few of them, whose sums are in registers together. The sums of a pixel are those that it would
// have alone, in the same order, so the result is the same bits.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "dense_product.h"
#include "draws.h"
#include "nade_strip.h"
#include "offset_nade_cpu.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

// Pixels of a wavefront whose strips are in registers together.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int band_rows = 4;           // of 32 registers
#else
constexpr int band_rows = 2;           // of 16 registers
#endif

// Adjacent neighbours: `count` values of the history from `offset` after the pixel's first, and the first of their rows
// of in_weight.
struct Segment {
  int64_t offset, count, weight_row;
};

// h = f(a) for `count` units, a whole number of vectors.
template <Activation A, typename T>
void activate_units(const T* a, int64_t count, T* h) {
  for (int64_t j = 0; j < count; j += Vec<T>::size()) activate<A, T>(Vec<T>::loadu(a + j)).store(h + j);
}

// Of P pixels, the sums of one strip: pixel i's vector u is number i strip_vectors + u.
template <int P, typename T>
using Strips = std::array<Vec<T>, P * strip_vectors>;

template <int P, bool Ragged, typename T, typename S>
AR_FAST_INLINE Strips<P, T> repeat_strip(const S* data, int64_t units) {
  return vectors<P * strip_vectors>(
      [&](auto i) { return load_strip_vector<Ragged, T>(data, i % strip_vectors, units); });
}

template <int P, bool Ragged, typename T, typename S>
AR_FAST_INLINE void add_row(const S* weight, int64_t units, const std::array<Vec<T>, P>& x, Strips<P, T>& a) {
  unroll<strip_vectors>([&](auto u) {
    const Vec<T> w = load_strip_vector<Ragged, T>(weight, u, units);
    unroll<P>([&](auto i) { a[i * strip_vectors + u] = at::vec::fmadd(x[i], w, a[i * strip_vectors + u]); });
  });
}

// a += x[i][k] times row k of a weight, for k = 0 ... count - 1 in ascending order.
template <int P, bool Ragged, typename T, typename S>
AR_FAST_INLINE void add_rows(const S* weight, int64_t stride, int64_t count, const std::array<const T*, P>& x,
                             int64_t units, Strips<P, T>& a) {
  for (int64_t k = 0; k < count; ++k, weight += stride) {
    add_row<P, Ragged, T>(weight, units, vectors<P>([&](auto i) { return Vec<T>(x[i][k]); }), a);
  }
}

// Calls body(first unit, their number) for every strip, with a constant that says whether it is ragged.
template <typename T, typename Body>
AR_FAST_INLINE void for_strips(int64_t units, const Body& body) {
  constexpr int64_t strip = strip_width<T>();
  int64_t j = 0;
  for (; j + strip <= units; j += strip) body(std::false_type{}, j, strip);
  if (j < units) body(std::true_type{}, j, units - j);
}

template <typename S, typename T>
class OffsetSampler {
 public:
  using Activate = void (*)(const T* a, int64_t count, T* h);

  OffsetSampler(const OffsetNadeSample& sample, Activate activate, Scratch& scratch)
      : s_(sample), draws_(sample.draws), activate_(activate), padded_(whole_strips(sample.hidden)),
        widest_(whole_strips(sample.most_units())) {
    a_ = scratch.take<T>(band_rows * padded_);
    h_ = scratch.take<T>(band_rows * widest_);
    next_ = scratch.take<T>(sample.layers > 0 ? band_rows * widest_ : 0);
    parameters_ = scratch.take<T>(band_rows * sample.parameters);
    weights_ = scratch.take<T>(sample.parameters);
    segments_ = scratch.take<Segment>(sample.up + 1);
  }

  // A row of the batch in raster order.
  void raster(int64_t row) {
    row_ = row;
    history_ = draws_.values_of<T>(row);
    double log_prob = 0;
    const auto take = [&](int64_t, T own) { log_prob += static_cast<double>(own); };
    for (int64_t pixel = draws_.start / s_.channels; pixel * s_.channels < draws_.stop; ++pixel) alone(pixel, take);
    draws_.log_prob[row] = log_prob;
  }

  // A band of rows of the image along wavefronts, for a row of the batch.
  void band(const OffsetNadeFront& front, int64_t row, int64_t band) {
    row_ = row;
    history_ = draws_.values_of<T>(row);
    T* const terms = static_cast<T*>(front.terms) + row * (draws_.stop - draws_.start) - draws_.start;
    const auto take = [&](int64_t p, T own) { terms[p] = own; };
    const int64_t first_pixel = draws_.start / s_.channels, last_pixel = (draws_.stop - 1) / s_.channels;
    const int64_t top = first_pixel / s_.columns + band * band_rows, left = last_pixel / s_.columns - top + 1;
    const int64_t rows = left < band_rows ? left : band_rows;
    const int64_t behind = s_.up > 0 ? s_.side + 1 : 0;
    int64_t* const drawn = front.drawn + (row * front.bands + band) * offset_nade_drawn_stride;
    const int64_t* const above = s_.up > 0 && band > 0 ? drawn - offset_nade_drawn_stride : nullptr;
    int64_t ready = 0;               // columns of the row above that are drawn
    for (int64_t step = 0; step < s_.columns + (rows - 1) * behind; ++step) {
      if (above != nullptr && step < s_.columns) {
        const int64_t needed = step + s_.side < s_.columns ? step + s_.side + 1 : s_.columns;
        for (int64_t turn = 0; ready < needed; ++turn) {
          ready = __atomic_load_n(above, __ATOMIC_ACQUIRE);
          if (ready < needed) front.wait(turn);
        }
      }
      const int64_t pixel = top * s_.columns + step, apart = s_.columns - behind;
      if (rows == band_rows && whole(top, step, behind)) {
        std::array<int64_t, band_rows> first;
        for (int i = 0; i < band_rows; ++i) first[i] = (pixel + i * apart) * s_.channels;
        pixels<band_rows>(first, 0, s_.channels, take);
      } else {
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t column = step - i * behind, own = pixel + i * apart;
          if (column >= 0 && column < s_.columns && own >= first_pixel && own <= last_pixel) alone(own, take);
        }
      }
      // The band below reads the last row.
      const int64_t last = step - (rows - 1) * behind;
      if (last >= 0) __atomic_store_n(drawn, last + 1, __ATOMIC_RELEASE);
    }
  }

 private:
  // Whether the call draws all of a band's pixels of a step, and all their taps lie on the grid.
  bool whole(int64_t top, int64_t step, int64_t behind) const {
    const int64_t last = step - (band_rows - 1) * behind, below = top + band_rows - 1;
    return top >= s_.up && last >= s_.side && step + s_.side < s_.columns &&
           (top * s_.columns + step) * s_.channels >= draws_.start &&
           (below * s_.columns + last + 1) * s_.channels <= draws_.stop;
  }

  static int64_t whole_strips(int64_t units) {
    constexpr int64_t strip = strip_width<T>();
    return (units + strip - 1) / strip * strip;
  }

  const S* in_row(int64_t row) const {
    return static_cast<const S*>(s_.in_weight) + row * s_.values_per_input * s_.hidden;
  }

  // Which of the rows of its input a value adds, and its factor.
  AR_FAST_INLINE std::pair<int64_t, T> added(T x) const {
    if (!s_.gathers) return {0, x};
    if (!is_category(x, s_.values_per_input)) return {0, std::numeric_limits<T>::quiet_NaN()};
    return {static_cast<int64_t>(x), T(1)};
  }

  // Draws the channels of a pixel that the call has to draw.
  template <typename Take>
  void alone(int64_t pixel, const Take& take) {
    const int64_t first = pixel * s_.channels, begin = draws_.start - first, end = draws_.stop - first;
    pixels<1>({first}, begin > 0 ? begin : 0, end < s_.channels ? end : s_.channels, take);
  }

  // Draws the channels [begin, end) of P pixels whose channels 0 are at the positions `first`, and calls
  // take(position, log p) of each. More than one pixel have the same taps on the grid.
  template <int P, typename Take>
  void pixels(const std::array<int64_t, P>& first, int64_t begin, int64_t end, const Take& take) {
    neighbourhood<P>(first);
    for (int64_t s = 0; s < begin; ++s) add_center<P>(s, first);
    for (int64_t channel = begin; channel < end; ++channel) {
      if (channel > begin) add_center<P>(channel - 1, first);
      bool draws = false;
      for (int i = 0; i < P; ++i) draws = draws || !draws_.is_known(row_, first[i] + channel);
      if (draws) {
        hidden<P>();
        output<P>(channel, first);
      }
      for (int i = 0; i < P; ++i) {
        const int64_t p = first[i] + channel;
        T own;
        history_[p] = draw_value(draws_, row_, p, parameters_ + i * s_.parameters, s_.parameters, weights_, own);
        take(p, own);
      }
    }
  }

  // The rows of taps that lie on the grid, from the pixel at position p.
  int64_t find_segments(int64_t p) {
    const int64_t pixel = p / s_.channels, r = pixel / s_.columns, c = pixel % s_.columns;
    int64_t found = 0;
    for (int64_t i = r < s_.up ? s_.up - r : 0; i <= s_.up; ++i) {
      const int64_t left = c < s_.side ? c : s_.side;
      const int64_t right = i == s_.up ? -1 : c + s_.side < s_.columns ? s_.side : s_.columns - 1 - c;
      if (left + right + 1 <= 0) continue;
      segments_[found++] = {-((s_.up - i) * s_.columns + left) * s_.channels, (left + right + 1) * s_.channels,
                            (i * (2 * s_.side + 1) + s_.side - left) * s_.channels};
    }
    return found;
  }

  template <int P>
  void neighbourhood(const std::array<int64_t, P>& first) {
    const T* const bias = static_cast<const T*>(s_.in_bias) + row_ * s_.in_bias_stride;
    const int64_t segments = find_segments(first[0]), stride = s_.values_per_input * s_.hidden;
    for_strips<T>(s_.hidden, [&](auto ragged, int64_t j, int64_t units) __attribute__((always_inline)) {
      auto a = repeat_strip<P, ragged, T>(bias + j, units);
      for (int64_t n = 0; n < segments; ++n) {
        const S* weight = in_row(segments_[n].weight_row) + j;
        std::array<const T*, P> x;
        unroll<P>([&](auto i) { x[i] = history_ + first[i] + segments_[n].offset; });
        if (s_.gathers) {
          for (int64_t k = 0; k < segments_[n].count; ++k, weight += stride) gather<P, ragged>(weight, units, k, x, a);
        } else {
          add_rows<P, ragged, T>(weight, stride, segments_[n].count, x, units, a);
        }
      }
      store<P>(a, a_ + j, padded_);
    });
  }

  // a += the row of the weight that each pixel's value x[i][k] selects.
  template <int P, bool Ragged>
  AR_FAST_INLINE void gather(const S* weight, int64_t units, int64_t k, const std::array<const T*, P>& x,
                             Strips<P, T>& a) const {
    unroll<P>([&](auto i) {
      const auto [row, factor] = added(x[i][k]);
      const Vec<T> one(factor);
      unroll<strip_vectors>([&](auto u) {
        const Vec<T> w = load_strip_vector<Ragged, T>(weight + row * s_.hidden, u, units);
        a[i * strip_vectors + u] = at::vec::fmadd(one, w, a[i * strip_vectors + u]);
      });
    });
  }

  template <int P>
  AR_FAST_INLINE void store(const Strips<P, T>& a, T* to, int64_t stride) const {
    unroll<P * strip_vectors>([&](auto i) {
      a[i].store(to + (i / strip_vectors) * stride + (i % strip_vectors) * Vec<T>::size());
    });
  }

  // a += x in_weight[row of (T, channel)].
  template <int P>
  void add_center(int64_t channel, const std::array<int64_t, P>& first) {
    const S* const weight = in_row(s_.taps() * s_.channels + channel);
    for (int i = 0; i < P; ++i) {
      const auto [row, factor] = added(history_[first[i] + channel]);
      const S* const own = weight + row * s_.hidden;
      T* const a = a_ + i * padded_;
      const std::array<Vec<T>, 1> x{Vec<T>(factor)};
      for_strips<T>(s_.hidden, [&](auto ragged, int64_t j, int64_t units) __attribute__((always_inline)) {
        auto sums = repeat_strip<1, false, T>(a + j, units);
        add_row<1, ragged, T>(own + j, units, x, sums);
        store<1>(sums, a + j, padded_);
      });
    }
  }

  // h_ = the units of the last hidden layer, from a_.
  template <int P>
  void hidden() {
    for (int i = 0; i < P; ++i) activate_(a_ + i * padded_, padded_, h_ + i * widest_);
    for (int64_t l = 0; l < s_.layers; ++l) {
      const OffsetNadeLayer& layer = s_.layer[l];
      const S* const weight = static_cast<const S*>(layer.weight);
      std::array<const T*, P> x;
      unroll<P>([&](auto i) { x[i] = h_ + i * widest_; });
      for_strips<T>(layer.units, [&](auto ragged, int64_t j, int64_t units) __attribute__((always_inline)) {
        auto a = repeat_strip<P, ragged, T>(static_cast<const T*>(layer.bias) + j, units);
        add_rows<P, ragged, T>(weight + j, layer.units, s_.units(l), x, units, a);
        store<P>(a, next_ + j, widest_);
      });
      for (int i = 0; i < P; ++i) activate_(next_ + i * widest_, whole_strips(layer.units), next_ + i * widest_);
      std::swap(h_, next_);
    }
  }

  // Units that fill the last strip are all the same, and count nothing while they are finite; an infinite value of the
  // event makes NaN of them.
  static void clear_undefined_padding(T* h, int64_t units) {
    const int64_t padded = whole_strips(units);
    if (units < padded && !std::isfinite(h[padded - 1])) std::fill(h + units, h + padded, T(0));
  }

  // parameters_ = those of a channel of the pixels.
  template <int P>
  void output(int64_t channel, const std::array<int64_t, P>& first) const {
    std::array<const T*, P> x;
    unroll<P>([&](auto i) { x[i] = h_ + i * widest_; });
    for (int i = 0; i < P; ++i) clear_undefined_padding(h_ + i * widest_, s_.units(s_.layers));
    if (s_.shared_output) {
      product(channel, parameters_).run(s_.parameters, x.data(), P);
    } else {
      for (int i = 0; i < P; ++i) {
        product(draws_.variable(first[i] + channel), parameters_ + i * s_.parameters).run(s_.parameters, &x[i], 1);
      }
    }
  }

  // With the rows of out_weight of a channel or variable.
  Product<S, T> product(int64_t number, T* out) const {
    const int64_t row = number * s_.parameters, inputs = s_.units(s_.layers);
    return {static_cast<const S*>(s_.out_weight) + row * inputs, static_cast<const T*>(s_.out_bias) + row, inputs, out,
            s_.parameters};
  }

  const OffsetNadeSample& s_;
  const Draws& draws_;
  const Activate activate_;
  const int64_t padded_, widest_;
  int64_t row_ = 0;                // of the batch
  T* history_ = nullptr;           // history_[p] is its value at position p
  T *a_, *h_, *next_, *parameters_, *weights_;
  Segment* segments_;
};

}  // namespace

void offset_nade_layout(const OffsetNadeSample& sample, OffsetNadeLayout* layout) {
  dispatch_nade(sample, [&]<typename S, typename T, Activation A>() {
    Scratch scratch(nullptr);
    const OffsetSampler<S, T> sampler(sample, &activate_units<A, T>, scratch);
    *layout = {scratch.bytes_taken(), band_rows};
  });
}

void offset_nade_sample(const OffsetNadeSample& sample, int64_t row_begin, int64_t row_end, void* scratch_memory) {
  dispatch_nade(sample, [&]<typename S, typename T, Activation A>() {
    Scratch scratch(scratch_memory);
    OffsetSampler<S, T> sampler(sample, &activate_units<A, T>, scratch);
    for (int64_t row = row_begin; row < row_end; ++row) sampler.raster(row);
  });
}

void offset_nade_wavefront(const OffsetNadeSample& sample, const OffsetNadeFront& front, void* scratch_memory) {
  dispatch_nade(sample, [&]<typename S, typename T, Activation A>() {
    Scratch scratch(scratch_memory);
    OffsetSampler<S, T> sampler(sample, &activate_units<A, T>, scratch);
    const int64_t all = sample.draws.batch * front.bands;
    for (int64_t n; (n = __atomic_fetch_add(front.next, 1, __ATOMIC_RELAXED)) < all;) {
      sampler.band(front, n % sample.draws.batch, n / sample.draws.batch);
    }
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
