// The draw at a position whose parameters are known (kernels/draws.h), by one warp. Every lane of the warp calls these
// functions with the same arguments and gets the same result.
#pragma once

#include "../draws.h"
#include "head_device.h"

namespace ar_fast::cuda {

// The uniform number of a slot for a row at a position; the lanes may ask for different ones.
__device__ __forceinline__ double draw_uniform(const Draws& draws, int64_t row, int64_t position, uint32_t slot) {
  return philox_uniform(draws.seed, draws.index(row), draws.counter(position), slot);
}

// What a draw takes only from the random generator, so that it can be computed before the parameters: the uniform
// number of slot 0, and the normal or logistic number of the further slots.
struct DrawNoise {
  double uniform, deviate;
};

// The noise of a row at a position; the lanes may ask for different ones.
__device__ __forceinline__ DrawNoise draw_noise(const Draws& draws, int64_t row, int64_t position) {
  const HeadKind kind = draws.head_at(position).kind;
  DrawNoise noise = {draw_uniform(draws, row, position, 0), 0};
  if (kind == HeadKind::bernoulli || kind == HeadKind::categorical) return noise;
  const double uniform = draw_uniform(draws, row, position, 1);
  if (kind == HeadKind::gaussian_mixture) {
    noise.deviate = sqrt(-2 * log(uniform)) * cos_pi(2 * draw_uniform(draws, row, position, 2));
  } else {
    noise.deviate = log(uniform) - log1p(-uniform);
  }
  return noise;
}

// The noise of a row, 32 positions at a time: lane l holds that of the l-th position.
class NoiseAhead {
 public:
  // To be called before `here` at a position; the first of every 32 positions computes the noise of all of them.
  __device__ __forceinline__ void look(const Draws& draws, int64_t row, int position) {
    step_ = (position - static_cast<int>(draws.start)) % kWarpSize;
    if (step_ == 0) ahead_ = draw_noise(draws, row, min(position + lane_id(), static_cast<int>(draws.stop) - 1));
  }
  // The noise of the position that look was last called with.
  __device__ __forceinline__ DrawNoise here() const {
    return {__shfl_sync(kFullMask, ahead_.uniform, step_), __shfl_sync(kFullMask, ahead_.deviate, step_)};
  }

 private:
  DrawNoise ahead_ = {};
  int step_ = 0;
};

// Whether a Bernoulli variable is 1.
template <typename T>
__device__ __forceinline__ T bernoulli_draw(double uniform, T logit, T temperature) {
  return uniform < static_cast<double>(sigmoid(logit / temperature)) ? T(1) : T(0);
}

// The first k whose running sum of exp(l / temperature) exceeds the share `uniform` of the total.
template <typename T>
__device__ __forceinline__ int draw_category(const T* logits, int count, double uniform, T temperature) {
  T largest = logits[0];
  for (int k = lane_id(); k < count; k += kWarpSize) largest = logits[k] > largest ? logits[k] : largest;
  largest = warp_max(largest);
  const auto weight = [&](int k) {
    return k < count ? static_cast<double>(exp((logits[k] - largest) / temperature)) : 0.0;
  };
  double total = 0, below = 0;
  for (int k = lane_id(); k < count; k += kWarpSize) total += weight(k);
  const double bound = uniform * warp_sum(total);
  int last = 0;
  for (int first = 0; first < count; first += kWarpSize) {
    const double own = weight(first + lane_id()), sum = below + warp_running_sum(own);
    const uint32_t exceeding = __ballot_sync(kFullMask, first + lane_id() < count && sum > bound);
    if (exceeding != 0) return first + __ffs(static_cast<int>(exceeding)) - 1;
    const uint32_t positive = __ballot_sync(kFullMask, own > 0);
    if (positive != 0) last = first + kWarpSize - 1 - __clz(static_cast<int>(positive));
    below = __shfl_sync(kFullMask, sum, kWarpSize - 1);
  }
  return last;  // rounding left the sum at the bound
}

// The same for as many categories as a warp has in a vector of each lane, with one running sum over the lanes: numbers
// are rounded in another order, and no branch is before the exponentials. logits: in shared memory, aligned to 16
// bytes; those past `count` may be anything.
template <typename T>
__device__ __forceinline__ int draw_category_of_few(const T* logits, int count, double uniform, T temperature) {
  constexpr int each = Vector<T>::size;
  const T inverse = T(1) / temperature;
  const int first = lane_id() * each;
  const Vector<T> own = load_shared_vector(logits + first);
  T largest = logits[0];
#pragma unroll
  for (int i = 0; i < each; ++i) largest = first + i < count && own.values[i] > largest ? own.values[i] : largest;
  largest = warp_max(largest);
  T weights[each];
  double sums[each], sum = 0;
#pragma unroll
  for (int i = 0; i < each; ++i) {
    const T weight = exp((own.values[i] - largest) * inverse);
    weights[i] = first + i < count ? weight : T(0);
    sums[i] = sum += static_cast<double>(weights[i]);
  }
  sum = warp_running_sum(sum);
  const double bound = uniform * __shfl_sync(kFullMask, sum, kWarpSize - 1);
  double below = __shfl_up_sync(kFullMask, sum, 1u);
  if (lane_id() == 0) below = 0;
  int exceeding = each;
#pragma unroll
  for (int i = each - 1; i >= 0; --i) exceeding = weights[i] > T(0) && below + sums[i] > bound ? i : exceeding;
  const uint32_t found = __ballot_sync(kFullMask, exceeding < each);
  if (found != 0) {
    const int lane = __ffs(static_cast<int>(found)) - 1;
    return lane * each + __shfl_sync(kFullMask, exceeding, lane);
  }
  // Rounding left the sum at the bound: the last one that can be drawn.
  int positive = -1;
#pragma unroll
  for (int i = 0; i < each; ++i) positive = weights[i] > T(0) ? i : positive;
  const uint32_t any = __ballot_sync(kFullMask, positive >= 0);
  if (any == 0) return 0;
  const int lane = kWarpSize - 1 - __clz(static_cast<int>(any));
  return lane * each + __shfl_sync(kFullMask, positive, lane);
}

// Which categories top_k and top_p keep (kernels/draws.h): those whose logit is above a bound, and the first `ties` of
// those at the bound. Logits are compared by integers that have the same order.
template <typename T>
class KeptCategories {
 public:
  // Bisects the bits of the bound: one pass over the logits for each bit of a number, or two passes with both rules.
  __device__ KeptCategories(const Draws& draws, const T* logits, int count, T largest)
      : logits_(logits), count_(count), largest_(largest), temperature_(static_cast<T>(draws.temperature)) {
    if (draws.top_k > 0) {
      bound_ = greatest_bound(0, [&](Bits bound) { return number_from(bound) >= static_cast<int>(draws.top_k); });
      ties_ = static_cast<int>(draws.top_k) - (number_from(bound_) - number_at(bound_));
    }
    if (draws.top_p == 1) return;
    const double least = draws.top_p * (weight_above(bound_) + ties_ * weight_at(bound_));
    if (weight_above(bound_) >= least && number_from(bound_) > number_at(bound_)) {
      bound_ = greatest_bound(bound_ + 1, [&](Bits bound) { return weight_above(bound - 1) >= least; });
      ties_ = number_at(bound_);
    }
    // Keeps as many of the equal logits as needed, and at least one if no logit is above the bound.
    const double above = weight_above(bound_), each = weight_at(bound_);
    int ties = number_from(bound_) == number_at(bound_) ? 1 : 0;
    while (ties < ties_ && above + ties * each < least) ++ties;
    ties_ = ties;
  }

  // The weight of category first + lane, or 0. `ties` counts those at the bound before `first`, and is updated.
  __device__ __forceinline__ double weight(int first, int& ties) const {
    const int k = first + lane_id();
    const Bits bits = k < count_ ? bits_of(logits_[k]) : 0;
    const bool tie = k < count_ && bits == bound_;
    const uint32_t tied = __ballot_sync(kFullMask, tie);
    const int before = ties + __popc(tied & ((1u << lane_id()) - 1));
    ties += __popc(tied);
    return k < count_ && (bits > bound_ || (tie && before < ties_)) ? weight_of(k) : 0.0;
  }

 private:
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

  // An integer that ascends with the number; -0 is treated as 0.
  __device__ __forceinline__ static Bits bits_of(T value) {
    const T plain = value + T(0);
    Bits bits;
    memcpy(&bits, &plain, sizeof(bits));
    constexpr Bits sign = Bits{1} << (8 * sizeof(Bits) - 1);
    return bits & sign ? ~bits : bits | sign;
  }
  __device__ __forceinline__ double weight_of(int k) const {
    return static_cast<double>(exp((logits_[k] - largest_) / temperature_));
  }

  // The greatest bound at or above `least` for which `holds` is true. It must be true for `least`, and once it is false
  // for a bound it must be false for all greater ones.
  template <typename Holds>
  __device__ __forceinline__ static Bits greatest_bound(Bits least, const Holds& holds) {
    Bits bound = 0;
    for (int bit = 8 * static_cast<int>(sizeof(Bits)) - 1; bit >= 0; --bit) {
      const Bits next = bound | Bits{1} << bit;
      if (next <= least || holds(next)) bound = next;
    }
    return bound;
  }

  __device__ __forceinline__ int number_from(Bits bound) const {
    int number = 0;
    for (int k = lane_id(); k < count_; k += kWarpSize) number += bits_of(logits_[k]) >= bound ? 1 : 0;
    return warp_sum(number);
  }
  __device__ __forceinline__ int number_at(Bits bound) const {
    int number = 0;
    for (int k = lane_id(); k < count_; k += kWarpSize) number += bits_of(logits_[k]) == bound ? 1 : 0;
    return warp_sum(number);
  }
  __device__ __forceinline__ double weight_above(Bits bound) const {
    double weight = 0;
    for (int k = lane_id(); k < count_; k += kWarpSize) weight += bits_of(logits_[k]) > bound ? weight_of(k) : 0.0;
    return warp_sum(weight);
  }
  // The weight of one category at the bound.
  __device__ __forceinline__ double weight_at(Bits bound) const {
    double weight = 0;
    for (int k = lane_id(); k < count_; k += kWarpSize) weight = bits_of(logits_[k]) == bound ? weight_of(k) : weight;
    return warp_max(weight);
  }

  const T* const logits_;
  const int count_;
  const T largest_, temperature_;
  Bits bound_ = 0;
  int ties_ = 0;
};

// draw_category among the categories that are kept.
template <typename T>
__device__ int draw_kept_category(const Draws& draws, const T* logits, int count, double uniform) {
  T largest = logits[0];
  for (int k = lane_id(); k < count; k += kWarpSize) largest = logits[k] > largest ? logits[k] : largest;
  const KeptCategories<T> kept(draws, logits, count, warp_max(largest));
  double total = 0, below = 0;
  int ties = 0;
  for (int first = 0; first < count; first += kWarpSize) total += kept.weight(first, ties);
  const double bound = uniform * warp_sum(total);
  int last = 0;
  ties = 0;
  for (int first = 0; first < count; first += kWarpSize) {
    const double own = kept.weight(first, ties), sum = below + warp_running_sum(own);
    const uint32_t exceeding = __ballot_sync(kFullMask, first + lane_id() < count && sum > bound);
    if (exceeding != 0) return first + __ffs(static_cast<int>(exceeding)) - 1;
    const uint32_t positive = __ballot_sync(kFullMask, own > 0);
    if (positive != 0) last = first + kWarpSize - 1 - __clz(static_cast<int>(positive));
    below = __shfl_sync(kFullMask, sum, kWarpSize - 1);
  }
  return last;  // rounding left the sum at the bound
}

// A draw from the parameters of a variable. few: they are as draw_category_of_few takes them.
template <bool few = false, typename T>
__device__ __forceinline__ T draw_from(const Head& head, const T* parameters, int rows, const DrawNoise& noise,
                                       T temperature) {
  if (head.kind == HeadKind::bernoulli) {
    return bernoulli_draw(noise.uniform, parameters[0], temperature);
  }
  const auto category = [&](const T* logits, int count) {
    if constexpr (few) return draw_category_of_few(logits, count, noise.uniform, temperature);
    return draw_category(logits, count, noise.uniform, temperature);
  };
  if (head.kind == HeadKind::categorical) return static_cast<T>(category(parameters, rows));
  const Mixture<T> mixture(head, parameters, rows);
  const int k = category(mixture.logits, mixture.count);
  const double mean = static_cast<double>(mixture.mean(k)), raw = static_cast<double>(mixture.log_scale(k));
  const double scale = exp(raw), t = static_cast<double>(temperature);
  if (head.kind == HeadKind::gaussian_mixture) return static_cast<T>(mean + scale * sqrt(t) * noise.deviate);
  const double steps = static_cast<double>(head.levels - 1);
  const double level = rint((mean + scale * t * noise.deviate + 1) / 2 * steps);
  return static_cast<T>(2 * (level < 0 ? 0 : level > steps ? steps : level) / steps - 1);
}

// The value of a row at a position, from the parameters of its variable: the known value, or a drawn one. top_k and
// top_p are applied with `truncates`; without it they must not be set. few: as of draw_from.
template <bool truncates = false, bool few = false, typename T>
__device__ __forceinline__ T draw_value(const Draws& draws, int64_t row, int64_t position, const T* parameters,
                                        int rows, const DrawNoise& noise) {
  const T* const known = draws.known_value<T>(row, position);
  if constexpr (truncates) {
    if (known == nullptr && draws.truncates()) {
      return static_cast<T>(draw_kept_category(draws, parameters, rows, noise.uniform));
    }
  }
  return known != nullptr ? *known
                          : draw_from<few>(draws.head_at(position), parameters, rows, noise,
                                            static_cast<T>(draws.temperature));
}

// log p of the value that was drawn at a position.
template <typename T>
__device__ __forceinline__ double drawn_log_prob(const Draws& draws, int64_t position, const T* parameters, int rows,
                                                 T x) {
  return static_cast<double>(head_log_prob_one(draws.head_at(position), parameters, rows, x));
}

}  // namespace ar_fast::cuda
