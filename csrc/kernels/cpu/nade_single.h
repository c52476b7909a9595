// A row's steps through a chunk, straight from the weights. For a row or two, packing the weights of a chunk takes as
// long as all the rest. The state goes through memory instead, which the L1 cache holds.
#pragma once

#include "nade_form.h"

namespace ar_fast::CPU_CAPABILITY {

// A strip of a row of a weight: whole vectors, or the rest of the units with zeros behind them.
template <bool Whole, typename T>
AR_FAST_INLINE Strip<T> load_units(const T* row, int64_t units) {
  return vectors<strip_vectors>([&](auto u) { return load_strip_vector<!Whole, T>(row, u, units); });
}

template <Form F, Activation A, typename T>
class SingleRow {
 public:
  // For the units [begin, end), whose `state` has room for whole vectors, and so has `kept`, for the activations of
  // positions that share them.
  SingleRow(const NadeModel& model, int64_t begin, int64_t end, const Position<T>* positions, T* state, T* kept,
            T* partial)
      : in_(static_cast<const T*>(model.in_weight) + begin), out_(static_cast<const T*>(model.out_weight) + begin),
        hidden_(model.hidden), units_(end - begin), positions_(positions), state_(state), kept_(kept),
        partial_(partial) {}

  // partial[k] = the lanes of the dot product of position k of the chunk. Each position has one parameter.
  void run(int64_t count, const Change<T>* change, const Change<T>* last) {
    const Change<T>* before = nullptr;
    for (int64_t scored = 0; scored < count;) {
      const int64_t end = change != last ? change->position + 1 : count;
      if (scored < end) {
        before == nullptr ? score<false>(scored, end, before) : score<true>(scored, end, before);
        before = nullptr;
      }
      scored = end;
      if (change == last) break;
      before = change++;
    }
    // What the last position of the chunk adds.
    if (before != nullptr) score<true>(count, count, before);
  }

  // The largest |a| of the states that were scored.
  T reach() const { return largest(most_); }

 private:
  // Adds a change to the state, and scores the positions [first, end) with it.
  template <bool Adds>
  void score(int64_t first, int64_t end, const Change<T>* change) {
    const T* added = nullptr;
    Vec<T> x = zero<T>();
    if constexpr (Adds) {
      const Position<T>& position = positions_[change->position];
      added = in_ + (position.in_row + change->in_slot - position.in_slot) * hidden_;
      x = Vec<T>(state_unit<A, T>() * change->x);
    }
    if (first == end) return pass<Adds, false, false>(added, x, nullptr, nullptr);
    T* const sums = partial_ + first * Vec<T>::size();
    if (first + 1 == end) return pass<Adds, true, false>(added, x, out_row(first), sums);
    pass<Adds, true, true>(added, x, out_row(first), sums);
    int64_t k = first + 1;
    for (; k + 4 <= end; k += 4) score_kept<4>(k);
    for (; k < end; ++k) score_kept<1>(k);
  }

  const T* out_row(int64_t position) const { return out_ + positions_[position].out_row * hidden_; }

  template <bool Adds, bool Scores, bool Keeps>
  void pass(const T* added, const Vec<T>& x, const T* out, T* sums) {
    Vec<T> total = zero<T>();
    const auto step = [&]<bool Whole>(int64_t j) __attribute__((always_inline)) {
      auto a = load_vectors(state_ + j);
      if constexpr (Adds) {
        const auto w = load_units<Whole>(added + j, units_ - j);
        unroll<strip_vectors>([&](auto u) { a[u] = at::vec::fmadd(x, w[u], a[u]); });
        // Behind the last unit an infinite number makes NaN.
        if constexpr (!Whole) a = without_padding<T>(a, units_ - j);
        store_vectors(a, state_ + j);
      }
      if constexpr (Scores) {
        const auto w = load_units<Whole>(out + j, units_ - j);
        if constexpr (F == Form::bounded) {
          unroll<strip_vectors>([&](auto u) { most_ = at::vec::maximum(most_, a[u].abs()); });
          if constexpr (!Keeps) {
            total = add_quotients<T>(w, one_plus_exp2(a), total);
            return;
          }
        }
        const auto h = activate_vectors<F, A>(a, T(1));
        unroll<strip_vectors>([&](auto u) { total = at::vec::fmadd(h[u], w[u], total); });
        if constexpr (Keeps) store_vectors(h, kept_ + j);
      }
    };
    constexpr int64_t strip = strip_width<T>();
    int64_t j = 0;
    for (; j + strip <= units_; j += strip) step.template operator()<true>(j);
    if (j < units_) step.template operator()<false>(j);
    if constexpr (Scores) total.store(sums);
  }

  // Positions whose activations are kept.
  template <int Count>
  void score_kept(int64_t first) {
    constexpr int64_t strip = strip_width<T>();
    std::array<Vec<T>, Count> total;
    total.fill(zero<T>());
    const auto step = [&]<bool Whole>(int64_t j) __attribute__((always_inline)) {
      const auto h = load_vectors(kept_ + j);
      unroll<Count>([&](auto k) {
        const auto w = load_units<Whole>(out_row(first + k) + j, units_ - j);
        unroll<strip_vectors>([&](auto u) { total[k] = at::vec::fmadd(h[u], w[u], total[k]); });
      });
    };
    int64_t j = 0;
    for (; j + strip <= units_; j += strip) step.template operator()<true>(j);
    if (j < units_) step.template operator()<false>(j);
    unroll<Count>([&](auto k) { total[k].store(partial_ + (first + k) * Vec<T>::size()); });
  }

  const T *in_, *out_;
  int64_t hidden_, units_;
  const Position<T>* positions_;
  T *state_, *kept_, *partial_;
  Vec<T> most_ = zero<T>();
};

}  // namespace ar_fast::CPU_CAPABILITY
