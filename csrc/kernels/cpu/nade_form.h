// The forms of a NADE's state on the CPU, and what each form needs from in_weight.
//
// If every input adds either a row of in_weight or nothing, a sigmoid's state can be kept as odds exp(-a): adding a row
// multiplies the odds by exp(-w), which is computed once for all rows of the batch, and f(a) = 1 / (1 + odds) needs no
// exponential. Their rounding error is relative, whereas that of a sum grows with the sum. Odds have the range of their
// type, so they are replaced by pre-activations as soon as a bound on |a| exceeds odds_limit.
//
// Inputs of any size leave pre-activations. Where the same bound holds for them through a chunk, their sigmoid needs no
// limits, and f(a) = 1 / (1 + 2^t) is a short polynomial and a division (one_plus_exp2).
#pragma once

#include <algorithm>
#include <bit>
#include <limits>

#include "exp2_table.h"
#include "nade_strip.h"

namespace ar_fast::CPU_CAPABILITY {

enum class Form { pre_activations, bounded, scaled_pre_activations, odds };

// Whether Form::bounded exists.
template <Activation A, typename T>
constexpr bool has_bounded_form() {
#if defined(AR_FAST_FAST_SIGMOID)
  return A == Activation::sigmoid && std::is_same_v<T, float>;
#else
  return false;
#endif
}

template <typename T>
constexpr T odds_limit() {
  return std::is_same_v<T, double> ? T(690) : T(83);
}

// Whether the states may be odds.
template <Activation A>
bool keeps_odds(const NadeModel& model, const NadeInput& input) {
  return A == Activation::sigmoid && input.odds && !model.activation_scale;
}

// Of numbers that are not negative; NaN if one is NaN. Their bits ascend as they do, and those of NaN are the greatest.
template <typename T>
T largest(const Vec<T>& vector) {
  using Bits = std::conditional_t<std::is_same_v<T, float>, int32_t, int64_t>;
  T values[Vec<T>::size()];
  vector.abs().store(values);
  Bits most = 0;
  for (const T value : values) most = std::max(most, std::bit_cast<Bits>(value));
  return std::bit_cast<T>(most);
}

// The largest |a| of some odds; NaN if one is NaN.
template <typename T>
T odds_reach(const T* odds, int64_t count) {
  Vec<T> least(T(1)), most(T(1));
  for (int64_t j = 0; j < count; j += Vec<T>::size()) {
    const Vec<T> value = Vec<T>::loadu(odds + j);
    least = at::vec::minimum(least, value);
    most = at::vec::maximum(most, value);
  }
  return largest(at::vec::maximum(least.log().neg(), most.log()));
}

// A row's state, kept as odds while they are in range: then `reach` is a bound on |a|. Afterwards `reach` is infinity,
// and the state is pre-activations in `unit`.
template <typename T>
void begin_odds(T* state, int64_t count, T unit, T& reach) {
  Vec<T> most = zero<T>();
  for (int64_t j = 0; j < count; j += Vec<T>::size()) most = at::vec::maximum(most, Vec<T>::loadu(state + j).abs());
  reach = largest(most);
  if (reach <= odds_limit<T>()) {
    for (int64_t j = 0; j < count; j += Vec<T>::size()) exp_neg<T>(Vec<T>::loadu(state + j)).store(state + j);
  } else {
    reach = std::numeric_limits<T>::infinity();
    for (int64_t j = 0; j < count; ++j) state[j] *= unit;
  }
}

// Whether the state stays odds when `more` is added to the bound; if not, it is converted to pre-activations.
template <typename T>
bool keep_odds(T more, T* state, int64_t count, T unit, T& reach) {
  if (reach == std::numeric_limits<T>::infinity()) return false;
  if (!(reach + more <= odds_limit<T>())) reach = odds_reach(state, count);
  if (reach + more <= odds_limit<T>()) {
    reach += more;
    return true;
  }
  for (int64_t j = 0; j < count; j += Vec<T>::size()) {
    (Vec<T>::loadu(state + j).log() * Vec<T>(-unit)).store(state + j);
  }
  reach = std::numeric_limits<T>::infinity();
  return false;
}

// The largest |a| of some pre-activations in `unit`; NaN if one is NaN.
template <typename T>
T largest_size(const T* state, int64_t count, T unit) {
  Vec<T> most = zero<T>();
  for (int64_t j = 0; j < count; j += Vec<T>::size()) most = at::vec::maximum(most, Vec<T>::loadu(state + j).abs());
  return largest(most) / std::abs(unit);
}

// Whether pre-activations stay bounded when `more` is added to `bound`, a bound on |a|.
template <typename T>
bool stay_bounded(T more, const T* state, int64_t count, T unit, T& bound) {
  if (!(bound + more <= odds_limit<T>())) bound = largest_size(state, count, unit);
  bound += more;
  return bound <= odds_limit<T>();
}

// in_weight of a chunk as a form needs it: rows of w, or of exp(-w) for odds. A row is packed when it is first needed.
template <typename T>
class PackedInput {
 public:
  PackedInput(int64_t rows, int64_t strips, Scratch& scratch)
      : packed_(rows, strips, scratch), here_(scratch.take<bool>(rows)), reach_(scratch.take<T>(rows)) {}

  // For the units h0 ... h0 + units - 1.
  template <typename S>
  void begin_chunk(const NadeModel& model, const Position<T>* positions, int64_t h0, int64_t units, bool odds) {
    model_ = &model;
    positions_ = positions;
    h0_ = h0;
    units_ = units;
    pack_ = odds ? &PackedInput::pack<S, true> : &PackedInput::pack<S, false>;
    missing_ = packed_.rows;
    for (int64_t slot = 0; slot < packed_.rows; ++slot) here_[slot] = false;
  }

  // Packs the rows that some changes need and that are not packed yet.
  void bring(const Change<T>* change, const Change<T>* last) {
    if (missing_ == 0) return;
    for (; change != last; ++change) {
      if (!here_[change->in_slot]) (this->*pack_)(*change);
    }
  }
  // How far changes can move a state.
  T reach(const Change<T>* change, const Change<T>* last) const {
    T sum = 0;
    for (; change != last; ++change) sum += std::abs(change->x) * reach_[change->in_slot];
    return sum;
  }
  const T* strip(int64_t index) const { return packed_.strip(index); }
  int64_t rows() const { return packed_.rows; }

 private:
  template <typename S, bool Odds>
  void pack(const Change<T>& change) {
    const Position<T>& position = positions_[change.position];
    const int64_t row = position.in_row + change.in_slot - position.in_slot;
    Vec<T> most = zero<T>();
    packed_.put(change.in_slot, static_cast<const S*>(model_->in_weight) + row * model_->hidden + h0_, units_,
                [&](const Vec<T>& w) __attribute__((always_inline)) {
                  most = at::vec::maximum(most, w.abs());
                  if constexpr (Odds) return exp_neg<T>(w);
                  else return w;
                });
    here_[change.in_slot] = true;
    --missing_;
    reach_[change.in_slot] = largest(most);
  }

  PackedRows<T> packed_;
  bool* here_;    // [rows]
  T* reach_;      // [rows] the largest |w|
  const NadeModel* model_;
  const Position<T>* positions_;
  int64_t h0_, units_, missing_;
  void (PackedInput::*pack_)(const Change<T>&);
};

// The functions that depend on the type of the weights. They are called once for a chunk of positions or a row of a
// weight's gradient, so that the code inside a chunk is not compiled for each type.
template <typename T>
struct WeightSteps {
  void (*begin_input)(const NadeModel&, const Position<T>*, int64_t h0, int64_t units, bool odds, PackedInput<T>& in);
  void (*pack_out_weight)(const NadeModel&, const Position<T>*, int64_t count, int64_t h0, int64_t units,
                          PackedRows<T>& out);
  void (*store)(const T* data, int64_t count, void* weight, int64_t first);   // at element `first`
};

template <typename S, typename T>
constexpr WeightSteps<T> weight_steps() {
  return {[](const NadeModel& model, const Position<T>* positions, int64_t h0, int64_t units, bool odds,
             PackedInput<T>& in) { in.template begin_chunk<S>(model, positions, h0, units, odds); },
          &pack_out_weight<S, T>,
          [](const T* data, int64_t count, void* weight, int64_t first) {
            store_strip(data, count, static_cast<S*>(weight) + first);
          }};
}

// f(a), from a state in its form.
template <Form F, Activation A, typename T, size_t N>
AR_FAST_INLINE std::array<Vec<T>, N> activate_vectors(const std::array<Vec<T>, N>& a, T scale) {
  if constexpr (F == Form::bounded) {
    const auto denominators = one_plus_exp2(a);
    return vectors<N>([&](auto u) { return Vec<T>(T(1)) / denominators[u]; });
  }
  return vectors<N>([&](auto u) {
    constexpr bool divides = decltype(u)::value % 2 == 0;
    if constexpr (F == Form::odds) return sigmoid_of_odds<T>(a[u]);
    else if constexpr (F == Form::scaled_pre_activations) return activate_state<A, T, divides>(a[u] * Vec<T>(scale));
    else return activate_state<A, T, divides>(a[u]);
  });
}

// Vector u of some strips of a packed row; the strips are `rows` rows apart.
template <typename T>
AR_FAST_INLINE Vec<T> load_packed(const T* packed, int64_t row, int64_t rows, int u) {
  return Vec<T>::loadu(packed +
                       ((row + u / strip_vectors * rows) * strip_vectors + u % strip_vectors) * Vec<T>::size());
}

// sum + w h, where h is 1 / denominator. Dividing w by it takes an addition where multiplying with h takes a
// multiply-add, whose units are the busiest.
template <typename T, size_t N>
AR_FAST_INLINE Vec<T> add_quotients(const std::array<Vec<T>, N>& w, const std::array<Vec<T>, N>& denominator,
                                    Vec<T> sum) {
  const auto terms = vectors<N>([&](auto u) { return in_register<T>(w[u] / denominator[u]); });
  unroll<N / 2>([&](auto u) { sum = sum + (terms[2 * u] + terms[2 * u + 1]); });
  return sum;
}

// The state after a change; `in` holds packed rows of in_weight, or exp(-w) of them for odds.
template <Form F, Activation A, typename T, size_t N>
AR_FAST_INLINE void advance(const T* in, int64_t rows, const Change<T>& change, std::array<Vec<T>, N>& a) {
  const Vec<T> x(state_unit<A, T>() * change.x);
  unroll<N>([&](auto u) {
    const Vec<T> w = load_packed(in, change.in_slot, rows, u);
    if constexpr (F == Form::odds) a[u] = a[u] * w;
    else a[u] = at::vec::fmadd(x, w, a[u]);
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
