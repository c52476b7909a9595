// Heads: the arithmetic of one variable by one warp, whose lanes share out its parameters. The contract is in
// kernels/head.h. Every lane of the warp calls, with the same arguments, and gets the same result.
//
// Lane l takes the parameters l, l + 32, ... A log-sum-exp is one pass with one exp a value and 10 shuffles. log p
// takes one pass for categorical and two for mixtures, the gradients one more. The reductions have a fixed order.
#pragma once

#include <limits>

#include "../head.h"
#include "activation.h"

namespace ar_fast::cuda {

// log sum_k exp(v_k). Each lane has its own maximum and sum, of the values that it was given.
template <typename T>
class LogSumExp {
 public:
  __device__ __forceinline__ void add(T value) {
    const T above = value - maximum_, factor = exp(above > T(0) ? -above : above);
    sum_ = above > T(0) ? fma(sum_, factor, T(1)) : sum_ + factor;
    maximum_ = above > T(0) ? value : maximum_;
  }
  // Over all lanes, in every lane.
  __device__ __forceinline__ T result() const {
    const T maximum = warp_max(maximum_);
    return maximum + log(warp_sum(sum_ * exp(maximum_ - maximum)));
  }

 private:
  // No finite value is below, and its difference to itself is 0.
  static constexpr T lowest = -std::numeric_limits<T>::max();
  T maximum_ = lowest, sum_ = T(0);
};

template <typename T>
__device__ __forceinline__ T log_sum_exp(const T* values, int count) {
  LogSumExp<T> sum;
  for (int k = lane_id(); k < count; k += kWarpSize) sum.add(values[k]);
  return sum.result();
}

// One component of a mixture at x: its log-density (log-probability of the bin), and the derivatives by the mean and by
// the log-scale.
template <typename T>
struct Component {
  T log_density, by_mean, by_log_scale;
};

template <typename T>
__device__ __forceinline__ T cut_distance(T distance) {
  constexpr T most = static_cast<T>(head_largest_distance);
  return distance < -most ? -most : distance > most ? most : distance;
}

template <typename T>
__device__ __forceinline__ Component<T> gaussian_component(T x, T mean, T log_scale) {
  const T inverse = exp(-log_scale), z = cut_distance((x - mean) * inverse);
  return {T(-0.5) * z * z - log_scale - T(0.918938533204672741780), z * inverse, z * z - T(1)};
}

template <typename T>
__device__ __forceinline__ Component<T> logistic_component(T x, int64_t levels, T mean, T log_scale) {
  const T half = T(1) / static_cast<T>(levels - 1), inverse = exp(-log_scale);
  const T a = cut_distance((x - mean + half) * inverse), b = cut_distance((x - mean - half) * inverse);
  const T below = sigmoid(-a), above = sigmoid(b);
  if (x < half - T(1)) return {-softplus(-a), -inverse * below, -(a * below)};
  if (x > T(1) - half) return {-softplus(b), inverse * above, b * above};
  // log(1 - e^-width) and its derivative; narrow bins by their series, since the width itself may underflow.
  const T width = T(2) * half * inverse;
  const bool narrow = width < T(1e-4);
  const T log_mass = narrow ? log(T(2) * half) - log_scale - T(0.5) * width : log(-expm1(-width));
  const T mass_slope = narrow ? T(1) - T(0.5) * width : width / expm1(width);
  return {log_mass - softplus(-a) - softplus(b), inverse * (above - below), b * above - a * below - mass_slope};
}

// A mixture's parameters: K logits, K means, K log-scales.
template <typename T>
struct Mixture {
  const Head& head;
  const T* logits;
  int count;

  __device__ __forceinline__ Mixture(const Head& h, const T* parameters, int rows)
      : head(h), logits(parameters), count(rows / 3) {}

  __device__ __forceinline__ T mean(int k) const { return logits[count + k]; }
  // Cut off below; NaN stays NaN.
  __device__ __forceinline__ T log_scale(int k) const {
    const T raw = logits[2 * count + k];
    return is_cut(k) ? static_cast<T>(head_minimum_log_scale) : raw;
  }
  __device__ __forceinline__ bool is_cut(int k) const {
    return logits[2 * count + k] < static_cast<T>(head_minimum_log_scale);
  }

  __device__ __forceinline__ Component<T> component(T x, int k) const {
    Component<T> result = head.kind == HeadKind::gaussian_mixture
                              ? gaussian_component(x, mean(k), log_scale(k))
                              : logistic_component(x, head.levels, mean(k), log_scale(k));
    if (is_cut(k)) result.by_log_scale = T(0);
    return result;
  }

  // log sum_k e^l_k, and log p = log sum_k e^(l_k - that + log-density_k): logits are normalised first, so that large
  // ones cost no digits.
  __device__ __forceinline__ void log_sums(T x, T& of_logits, T& log_prob) const {
    of_logits = log_sum_exp(logits, count);
    LogSumExp<T> joint;
    for (int k = lane_id(); k < count; k += kWarpSize) {
      joint.add(logits[k] - of_logits + component(x, k).log_density);
    }
    log_prob = joint.result();
  }
};

// x l - log(1 + e^l)
template <typename T>
__device__ __forceinline__ T bernoulli_log_prob(T logit, T x) {
  return fma(x, logit, -softplus(logit));
}

// NaN where x is no category.
template <typename T>
__device__ __forceinline__ T categorical_log_prob(const T* logits, int count, T x) {
  LogSumExp<T> sum;
  T own = T(0);
  bool found = false;
  for (int k = lane_id(); k < count; k += kWarpSize) {
    const T logit = logits[k];
    sum.add(logit);
    if (static_cast<T>(k) == x) {
      own = logit;
      found = true;
    }
  }
  const uint32_t owner = __ballot_sync(kFullMask, found);
  own = __shfl_sync(kFullMask, own, __ffs(static_cast<int>(owner)) - 1);
  return (owner != 0 ? own : not_a_number<T>) - sum.result();
}

// log p of x.
template <typename T>
__device__ __forceinline__ T head_log_prob_one(const Head& head, const T* parameters, int rows, T x) {
  if (head.kind == HeadKind::bernoulli) return bernoulli_log_prob(parameters[0], x);
  if (head.kind == HeadKind::categorical) return categorical_log_prob(parameters, rows, x);
  T of_logits, log_prob;
  Mixture<T>(head, parameters, rows).log_sums(x, of_logits, log_prob);
  return log_prob;
}

// Writes grad times the derivatives of log p by the parameters; returns that by x.
template <typename T>
__device__ __forceinline__ T head_backward_one(const Head& head, const T* parameters, int rows, T x, T grad,
                                               T* grad_parameters) {
  if (head.kind == HeadKind::bernoulli) {
    if (lane_id() == 0) grad_parameters[0] = grad * (x - sigmoid(parameters[0]));
    return grad * parameters[0];
  }
  if (head.kind == HeadKind::categorical) {
    const T normalizer = is_category(x, rows) ? log_sum_exp(parameters, rows) : not_a_number<T>;
    for (int k = lane_id(); k < rows; k += kWarpSize) {
      const T expected = -(grad * exp(parameters[k] - normalizer));
      grad_parameters[k] = static_cast<T>(k) == x ? expected + grad : expected;
    }
    return T(0);
  }
  const Mixture<T> mixture(head, parameters, rows);
  T of_logits, log_prob, by_x = T(0);
  mixture.log_sums(x, of_logits, log_prob);
  for (int k = lane_id(); k < mixture.count; k += kWarpSize) {
    const Component<T> component = mixture.component(x, k);
    const T log_weight = mixture.logits[k] - of_logits;
    const T share = grad * exp(log_weight + component.log_density - log_prob), by_mean = share * component.by_mean;
    grad_parameters[k] = share - grad * exp(log_weight);
    grad_parameters[mixture.count + k] = by_mean;
    grad_parameters[2 * mixture.count + k] = share * component.by_log_scale;
    by_x -= by_mean;
  }
  return warp_sum(by_x);
}

}  // namespace ar_fast::cuda
