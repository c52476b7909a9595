// The heads' arithmetic for one variable, whose parameters lie side by side, in vectors.
#pragma once

#include <limits>

#include "../head.h"
#include "vec_math.h"

namespace ar_fast::CPU_CAPABILITY {

// log sum_k exp(v_k), accumulated a vector at a time: each lane has its own maximum and sum.
template <typename T>
class LogSumExp {
 public:
  // Adds the first `count` lanes of v.
  void add(const Vec<T>& v, int64_t count) {
    const Vec<T> value = Vec<T>::set(Vec<T>(-std::numeric_limits<T>::infinity()), v, count);
    const Vec<T> maximum = at::vec::maximum(maximum_, value);
    sum_ = sum_ * (maximum_ - maximum).exp() + (value - maximum).exp();
    maximum_ = maximum;
  }
  T result() const {
    T maxima[Vec<T>::size()];
    maximum_.store(maxima);
    T maximum = maxima[0];
    for (int i = 1; i < Vec<T>::size(); ++i) maximum = maxima[i] > maximum ? maxima[i] : maximum;
    return maximum + std::log(horizontal_sum(sum_ * (maximum_ - Vec<T>(maximum)).exp()));
  }

 private:
  // Not above any value, and finite, so that its difference to itself is 0.
  static constexpr T lowest = -std::numeric_limits<T>::max();
  Vec<T> maximum_{Vec<T>(lowest)};
  Vec<T> sum_{zero<T>()};
};

template <typename T>
inline Vec<T> load_lanes(const T* data, int64_t count) {
  return count == Vec<T>::size() ? load(data) : load_partial(data, count);
}

template <typename T>
inline void store_lanes(const Vec<T>& value, T* data, int64_t count) {
  value.store(data, static_cast<int>(count));
}

// Calls body(k, count) for 0 ... total-1, a vector at a time.
template <typename T, typename Body>
inline void for_lanes(int64_t total, const Body& body) {
  constexpr int64_t width = Vec<T>::size();
  for (int64_t k = 0; k < total; k += width) body(k, total - k < width ? total - k : width);
}

template <typename T>
inline T log_sum_exp(const T* values, int64_t count) {
  LogSumExp<T> sum;
  for_lanes<T>(count, [&](int64_t k, int64_t n) { sum.add(load_lanes(values + k, n), n); });
  return sum.result();
}

// x l - log(1 + e^l) of `count` variables.
template <typename T>
inline void bernoulli_log_prob(const T* logits, const T* x, int64_t count, T* log_prob) {
  for_lanes<T>(count, [&](int64_t k, int64_t n) {
    const Vec<T> l = load_lanes(logits + k, n);
    store_lanes<T>(load_lanes(x + k, n) * l - softplus<T>(l), log_prob + k, n);
  });
}

// Several components of a mixture at x: their log-density (or the log-probability of the bin), and its derivatives with
// respect to the mean and the log-scale.
template <typename T>
struct Components {
  Vec<T> log_density, by_mean, by_log_scale;
};

template <typename T>
inline Vec<T> cut_distance(const Vec<T>& distance) {
  const Vec<T> most(static_cast<T>(head_largest_distance));
  return at::vec::clamp(distance, most.neg(), most);
}

template <typename T>
inline Components<T> gaussian_components(const Vec<T>& x, const Vec<T>& mean, const Vec<T>& log_scale) {
  const Vec<T> inverse = log_scale.neg().exp();
  const Vec<T> z = cut_distance<T>((x - mean) * inverse);
  return {Vec<T>(T(-0.5)) * z * z - log_scale - Vec<T>(T(0.918938533204672741780)), z * inverse,
          z * z - Vec<T>(T(1))};
}

template <typename T>
inline Components<T> choose(const Components<T>& no, const Components<T>& yes, const Vec<T>& mask) {
  return {Vec<T>::blendv(no.log_density, yes.log_density, mask), Vec<T>::blendv(no.by_mean, yes.by_mean, mask),
          Vec<T>::blendv(no.by_log_scale, yes.by_log_scale, mask)};
}

template <typename T>
inline Components<T> logistic_components(const Vec<T>& x, int64_t levels, const Vec<T>& mean,
                                         const Vec<T>& log_scale) {
  const T half = T(1) / static_cast<T>(levels - 1);
  const Vec<T> lowest = x < Vec<T>(half - T(1)), highest = x > Vec<T>(T(1) - half);
  const Vec<T> one(T(1)), inverse = log_scale.neg().exp(), center = x - mean;
  const Vec<T> a = cut_distance<T>((center + Vec<T>(half)) * inverse);
  const Vec<T> b = cut_distance<T>((center - Vec<T>(half)) * inverse);
  const Vec<T> below = sigmoid<T>(a.neg()), above = sigmoid<T>(b);
  const Vec<T> log_below = softplus<T>(a.neg()).neg(), log_above = softplus<T>(b).neg();
  const Components<T> first{log_below, (inverse * below).neg(), (a * below).neg()};
  const Components<T> last{log_above, inverse * above, b * above};
  // Where each lane is in the first or the last bin, the mass of others need not be computed.
  const Vec<T> at_end = lowest | highest;
  if (at_end.zero_mask() == 0) return choose(last, first, lowest);
  // log(1 - e^-width) and its derivative; a series for narrow bins, since the width itself may underflow.
  const Vec<T> width = Vec<T>(2 * half) * inverse, narrow(T(1e-4));
  const Vec<T> log_width = Vec<T>(std::log(2 * half)) - log_scale;
  const Vec<T> is_narrow = width < narrow, series = width * Vec<T>(T(0.5));
  const Vec<T> log_mass = Vec<T>::blendv(width.neg().expm1().neg().log(), log_width - series, is_narrow);
  const Vec<T> mass_slope = Vec<T>::blendv(width / width.expm1(), one - series, is_narrow);
  const Components<T> inside{log_mass + log_below + log_above, inverse * (above - below),
                             b * above - a * below - mass_slope};
  return choose(choose(inside, last, highest), first, lowest);
}

// At one x in each lane, or the same in all. A log-scale below the least one has no derivative.
template <typename T>
inline Components<T> mixture_components(const Head& head, const Vec<T>& x, const Vec<T>& mean, const Vec<T>& raw) {
  const Vec<T> floor(static_cast<T>(head_minimum_log_scale));
  const Vec<T> log_scale = at::vec::maximum(raw, floor);
  Components<T> result = head.kind == HeadKind::gaussian_mixture
                             ? gaussian_components<T>(x, mean, log_scale)
                             : logistic_components<T>(x, head.levels, mean, log_scale);
  result.by_log_scale = Vec<T>::blendv(result.by_log_scale, zero<T>(), raw < floor);
  return result;
}

// A mixture's parameters: K logits, K means, K log-scales.
template <typename T>
struct Mixture {
  Head head;
  int64_t count;
  const T *logits, *means, *log_scales;

  Mixture(const Head& h, const T* parameters, int64_t rows)
      : head(h), count(rows / 3), logits(parameters), means(parameters + count), log_scales(means + count) {}

  Components<T> components(T x, int64_t k, int64_t n) const {
    return mixture_components(head, Vec<T>(x), load_lanes(means + k, n), load_lanes(log_scales + k, n));
  }

  // log sum_k e^l_k, and log p = log sum_k e^(l_k - that + log-density_k): the logits are normalised first, so that
  // large logits do not cost precision.
  void log_sums(T x, T* of_logits, T* log_prob) const {
    *of_logits = log_sum_exp(logits, count);
    LogSumExp<T> joint;
    for_lanes<T>(count, [&](int64_t k, int64_t n) {
      joint.add(load_lanes(logits + k, n) - Vec<T>(*of_logits) + components(x, k, n).log_density, n);
    });
    *log_prob = joint.result();
  }
};

template <typename T>
inline T head_log_prob_one(const Head& head, const T* parameters, int64_t rows, T x) {
  switch (head.kind) {
    case HeadKind::bernoulli: {
      T result;
      bernoulli_log_prob(parameters, &x, 1, &result);
      return result;
    }
    case HeadKind::categorical:
      if (!is_category(x, rows)) return std::numeric_limits<T>::quiet_NaN();
      return parameters[static_cast<int64_t>(x)] - log_sum_exp(parameters, rows);
    default: {
      T of_logits, log_prob;
      Mixture<T>(head, parameters, rows).log_sums(x, &of_logits, &log_prob);
      return log_prob;
    }
  }
}

// Writes grad times the derivatives of log p with respect to the parameters; returns the one with respect to x.
template <typename T>
inline T head_backward_one(const Head& head, const T* parameters, int64_t rows, T x, T grad, T* grad_parameters) {
  const Vec<T> g(grad);
  switch (head.kind) {
    case HeadKind::bernoulli: {
      T probability[Vec<T>::size()];
      sigmoid<T>(Vec<T>(parameters[0])).store(probability);
      grad_parameters[0] = grad * (x - probability[0]);
      return grad * parameters[0];
    }
    case HeadKind::categorical: {
      if (!is_category(x, rows)) {
        for (int64_t k = 0; k < rows; ++k) grad_parameters[k] = std::numeric_limits<T>::quiet_NaN();
        return T(0);
      }
      const Vec<T> normalizer(log_sum_exp(parameters, rows));
      for_lanes<T>(rows, [&](int64_t k, int64_t n) {
        store_lanes<T>((g * (load_lanes(parameters + k, n) - normalizer).exp()).neg(), grad_parameters + k, n);
      });
      grad_parameters[static_cast<int64_t>(x)] += grad;
      return T(0);
    }
    default: {
      const Mixture<T> mixture(head, parameters, rows);
      T of_logits, log_prob;
      mixture.log_sums(x, &of_logits, &log_prob);
      Vec<T> by_x = zero<T>();
      for_lanes<T>(mixture.count, [&](int64_t k, int64_t n) {
        const Vec<T> log_weight = load_lanes(mixture.logits + k, n) - Vec<T>(of_logits);
        const Components<T> c = mixture.components(x, k, n);
        const Vec<T> share = g * (log_weight + c.log_density - Vec<T>(log_prob)).exp();
        const Vec<T> by_mean = share * c.by_mean;
        store_lanes<T>(share - g * log_weight.exp(), grad_parameters + k, n);
        store_lanes(by_mean, grad_parameters + mixture.count + k, n);
        store_lanes<T>(share * c.by_log_scale, grad_parameters + 2 * mixture.count + k, n);
        by_x = by_x - Vec<T>::set(zero<T>(), by_mean, n);
      });
      return horizontal_sum(by_x);
    }
  }
}

}  // namespace ar_fast::CPU_CAPABILITY
