// The heads' arithmetic for as many variables as a vector has lanes, all with the same number of parameters. They are
// transposed, so that a parameter of all variables is one vector. For few parameters this is several times as fast as
// one variable after another (head_math.h).
#pragma once

#include <limits>

#include "head_math.h"
#include "transpose.h"

namespace ar_fast::CPU_CAPABILITY {

template <typename T>
class HeadLanes {
 public:
  // Of one variable: more of them fill vectors by themselves.
  static constexpr int64_t most_parameters = 48;

  HeadLanes(const Head& head, int64_t each) : head_(head), each_(each), count_(each / 3) {}

  static bool takes(const Head& head, int64_t each) {
    return (head.kind == HeadKind::categorical || head.kind == HeadKind::gaussian_mixture ||
            head.kind == HeadKind::logistic_mixture) &&
           each > 0 && each <= most_parameters;
  }

  // log p of `variables` variables, at most as many as a vector has lanes.
  void log_prob(const T* parameters, const T* x, int64_t variables, T* out) {
    load(parameters, variables);
    if (head_.kind == HeadKind::categorical) {
      T chosen[lanes];
      for (int64_t v = 0; v < lanes; ++v) {
        chosen[v] = v < variables && is_category(x[v], each_) ? parameters[v * each_ + static_cast<int64_t>(x[v])]
                                                              : std::numeric_limits<T>::quiet_NaN();
      }
      store_lanes<T>(Vec<T>::loadu(chosen) - log_sum_exp(0, each_), out, variables);
      return;
    }
    store_lanes<T>(mixture_log_prob(load_lanes(x, variables)), out, variables);
  }

  // Writes grad times the derivatives of log p with respect to the parameters and to x.
  void backward(const T* parameters, const T* x, const Vec<T>& grad, int64_t variables, T* grad_parameters, T* grad_x) {
    load(parameters, variables);
    if (head_.kind == HeadKind::categorical) {
      const Vec<T> normalizer = log_sum_exp(0, each_);
      for (int64_t k = 0; k < each_; ++k) put(k, (grad * (at(k) - normalizer).exp()).neg());
      store(grad_parameters, variables);
      T grads[lanes];
      grad.store(grads);
      for (int64_t v = 0; v < variables; ++v) {
        T* const own = grad_parameters + v * each_;
        if (is_category(x[v], each_)) {
          own[static_cast<int64_t>(x[v])] += grads[v];
        } else {
          for (int64_t k = 0; k < each_; ++k) own[k] = std::numeric_limits<T>::quiet_NaN();
        }
        grad_x[v] = T(0);
      }
      return;
    }
    const Vec<T> log_prob = mixture_log_prob(load_lanes(x, variables));
    Vec<T> by_x = zero<T>();
    for (int64_t k = 0; k < count_; ++k) {
      const Vec<T> log_weight = at(k) - of_logits_;
      const Vec<T> share = grad * (joint_[k] - log_prob).exp();
      const Vec<T> by_mean = share * by_mean_[k];
      put(k, share - grad * log_weight.exp());
      put(count_ + k, by_mean);
      put(2 * count_ + k, share * by_log_scale_[k]);
      by_x = by_x - by_mean;
    }
    store(grad_parameters, variables);
    store_lanes(by_x, grad_x, variables);
  }

 private:
  static constexpr int64_t lanes = Vec<T>::size();

  Vec<T> at(int64_t k) const { return Vec<T>::loadu(values_ + k * lanes); }
  void put(int64_t k, const Vec<T>& value) { value.store(values_ + k * lanes); }

  // Lanes without a variable are zero.
  void load(const T* parameters, int64_t variables) {
    for (int64_t k = 0; variables < lanes && k < each_; ++k) put(k, zero<T>());
    transpose(parameters, each_, values_, lanes, variables, each_);
  }
  void store(T* parameters, int64_t variables) const {
    transpose(values_, lanes, parameters, each_, each_, variables);
  }

  // Of the parameters [begin, end) of each variable.
  Vec<T> log_sum_exp(int64_t begin, int64_t end) const {
    return log_sum_exp_of(end - begin, [&](int64_t k) { return at(begin + k); });
  }
  template <typename At>
  static Vec<T> log_sum_exp_of(int64_t count, const At& value_at) {
    // Not above any value, and finite, so that its difference to itself is 0.
    Vec<T> maximum(-std::numeric_limits<T>::max()), sum = zero<T>();
    for (int64_t k = 0; k < count; ++k) maximum = at::vec::maximum(maximum, value_at(k));
    for (int64_t k = 0; k < count; ++k) sum = sum + (value_at(k) - maximum).exp();
    return maximum + sum.log();
  }

  // Leaves what the gradient needs. The logits are normalised first, so that large logits do not cost precision.
  Vec<T> mixture_log_prob(const Vec<T>& x) {
    of_logits_ = log_sum_exp(0, count_);
    for (int64_t k = 0; k < count_; ++k) {
      const Components<T> own = mixture_components(head_, x, at(count_ + k), at(2 * count_ + k));
      joint_[k] = at(k) - of_logits_ + own.log_density;
      by_mean_[k] = own.by_mean;
      by_log_scale_[k] = own.by_log_scale;
    }
    return log_sum_exp_of(count_, [&](int64_t k) { return joint_[k]; });
  }

  const Head head_;
  const int64_t each_, count_;   // parameters of a variable; components of a mixture
  T values_[most_parameters * lanes];
  Vec<T> joint_[most_parameters / 3], by_mean_[most_parameters / 3], by_log_scale_[most_parameters / 3];
  Vec<T> of_logits_;
};

}  // namespace ar_fast::CPU_CAPABILITY
