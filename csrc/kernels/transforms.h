// Transforms: what the sampler of a flow applies to a number that it is given, where other samplers draw from a head. A
// variable's parameters say an increasing function f, and the value for the number u is x = f^-1(u).
//
// An affine transform has the parameters shift b and raw scale a: f(x) = s x + b, with the scale
//   affine_soft_clip   s = exp(a / (1 + |a| / limit))                    constants: limit
//   affine_clamp       s = exp(min(max(a, low), high))                   constants: low, high
//   affine_softplus    s = log(1 + e^a) + least                          constants: least
//   affine_sigmoid     s = F(a + c) + least, F the sigmoid               constants: c, least
//   affine_gated       s = F(a + c), and f(x) = s x + (1 - s) b          constants: c
// A rational-quadratic spline of K bins has K widths, K heights and K - 1 derivatives at its inner knots, all of them raw.
// It maps [low, high] to itself; outside of it f(x) = x, and at its ends the derivative is 1. With K + 1 derivatives the
// first and the last are those of the ends.
//   spline_soft_clip   shares softmax(r / (1 + 2 |r| / limit)), derivatives exp(r / (1 + |r| / limit))
//                      constants: low, high, limit
//   spline_softplus    shares least + (1 - K least) softmax(factor r), derivatives least + log(1 + e^r)
//                      constants: low, high, least share of a width, of a height, least derivative, factor
// Widths and heights are the shares of high - low.
//
// Sources: Papamakarios, Pavlakou, Murray, "Masked autoregressive flow", NeurIPS 2017, equations 3 and 4 (affine);
// Kingma et al., "Improved variational inference with inverse autoregressive flow", NeurIPS 2016, equation 14 (gated);
// Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019, section 3.1 and equations 4 to 8 (splines).
#pragma once

#include <cmath>

#include "types.h"

namespace ar_fast {

enum class TransformKind : int32_t {
  none = 0,
  affine_soft_clip,
  affine_clamp,
  affine_softplus,
  affine_sigmoid,
  affine_gated,
  spline_soft_clip,
  spline_softplus,
};

constexpr int transform_max_constants = 6;

struct Transform {
  TransformKind kind = TransformKind::none;
  double constants[transform_max_constants] = {};

  AR_FAST_HOST_DEVICE bool is_affine() const {
    return kind >= TransformKind::affine_soft_clip && kind <= TransformKind::affine_gated;
  }
};

// Internal linkage, so that what is compiled for one instruction set is never called by another.
namespace {

template <typename T>
AR_FAST_HOST_DEVICE T transform_softplus(T a) {
  return (a > T(0) ? a : T(0)) + std::log1p(std::exp(-std::abs(a)));
}

// The inverse of an affine transform; log_derivative receives log dx/du.
template <typename T>
AR_FAST_HOST_DEVICE T affine_inverse(const Transform& transform, T shift, T a, T u, T& log_derivative) {
  const auto constant = [&](int i) { return static_cast<T>(transform.constants[i]); };
  T log_scale, scale;
  switch (transform.kind) {
    case TransformKind::affine_soft_clip:
      log_scale = a / (T(1) + std::abs(a / constant(0)));
      scale = std::exp(log_scale);
      break;
    case TransformKind::affine_clamp:
      log_scale = a < constant(0) ? constant(0) : a > constant(1) ? constant(1) : a;
      scale = std::exp(log_scale);
      break;
    case TransformKind::affine_softplus:
      scale = transform_softplus(a) + constant(0);
      log_scale = std::log(scale);
      break;
    case TransformKind::affine_sigmoid:
      scale = T(1) / (T(1) + std::exp(-(a + constant(0)))) + constant(1);
      log_scale = std::log(scale);
      break;
    default: {
      const T gate = a + constant(0);
      log_derivative = transform_softplus(-gate);
      return shift + (u - shift) * (T(1) + std::exp(-gate));
    }
  }
  log_derivative = -log_scale;
  return (u - shift) / scale;
}

// One side of a spline: its bins are shares of high - low. Overwrites the K raw numbers with their exponentials.
template <typename T>
class SplineSide {
 public:
  AR_FAST_HOST_DEVICE SplineSide(const Transform& transform, T* raw, int64_t bins, int least)
      : exponentials_(raw), bins_(bins), low_(static_cast<T>(transform.constants[0])),
        size_(static_cast<T>(transform.constants[1]) - low_) {
    const bool clips = transform.kind == TransformKind::spline_soft_clip;
    const T limit = static_cast<T>(transform.constants[2]), factor = static_cast<T>(transform.constants[5]);
    least_ = clips ? T(0) : static_cast<T>(transform.constants[least]);
    T largest = T(0), sum = T(0);
    for (int64_t k = 0; k < bins; ++k) {
      raw[k] = clips ? raw[k] / (T(1) + std::abs(T(2) * raw[k] / limit)) : raw[k] * factor;
      largest = k == 0 || raw[k] > largest ? raw[k] : largest;
    }
    for (int64_t k = 0; k < bins; ++k) {
      raw[k] = std::exp(raw[k] - largest);
      sum += raw[k];
    }
    share_ = (T(1) - static_cast<T>(bins) * least_) / sum;
  }
  // The knot after bin k, whose first knot is `before`, as a share of [low, high].
  AR_FAST_HOST_DEVICE T next(int64_t k, T before) const { return before + (least_ + share_ * exponentials_[k]); }
  // Where a knot is.
  AR_FAST_HOST_DEVICE T at(int64_t knot, T share) const { return low_ + size_ * (knot == bins_ ? T(1) : share); }

 private:
  const T* const exponentials_;
  const int64_t bins_;
  const T low_, size_;
  T least_, share_;
};

// The inverse of a spline with `rows` parameters, which are overwritten.
template <typename T>
AR_FAST_HOST_DEVICE T spline_inverse(const Transform& transform, T* parameters, int64_t rows, T u,
                                     T& log_derivative) {
  log_derivative = T(0);
  if (u < static_cast<T>(transform.constants[0]) || u > static_cast<T>(transform.constants[1])) return u;
  const bool own_ends = rows % 3 == 1;
  const int64_t bins = own_ends ? (rows - 1) / 3 : (rows + 1) / 3;
  const SplineSide<T> widths(transform, parameters, bins, 2), heights(transform, parameters + bins, bins, 3);
  T x_share = T(0), y_share = T(0), next_x = widths.next(0, x_share), next_y = heights.next(0, y_share);
  int64_t k = 0;
  while (k + 1 < bins && !(u < heights.at(k + 1, next_y))) {
    ++k;
    x_share = next_x;
    y_share = next_y;
    next_x = widths.next(k, x_share);
    next_y = heights.next(k, y_share);
  }
  const auto derivative = [&](int64_t knot) {
    if (!own_ends && (knot == 0 || knot == bins)) return T(1);
    const T raw = parameters[2 * bins + knot - (own_ends ? 0 : 1)];
    return transform.kind == TransformKind::spline_soft_clip
               ? std::exp(raw / (T(1) + std::abs(raw / static_cast<T>(transform.constants[2]))))
               : static_cast<T>(transform.constants[4]) + transform_softplus(raw);
  };
  const T x = widths.at(k, x_share), y = heights.at(k, y_share), first = derivative(k), last = derivative(k + 1);
  const T width = widths.at(k + 1, next_x) - x, height = heights.at(k + 1, next_y) - y, slope = height / width;
  const T curvature = first + last - T(2) * slope, above = u - y;
  const T a = height * (slope - first) + above * curvature, b = height * first - above * curvature, c = -slope * above;
  const T discriminant = b * b - T(4) * a * c;
  // The bin contains the value, whatever rounding says.
  const T root = T(2) * c / (-b - std::sqrt(discriminant < T(0) ? T(0) : discriminant));
  const T z = root < T(0) ? T(0) : root > T(1) ? T(1) : root, rest = T(1) - z;
  const T slope_of_f = slope * slope * (T(2) * slope * z * rest + first * rest * rest + last * z * z);
  log_derivative = T(2) * std::log(slope + curvature * z * rest) - std::log(slope_of_f);
  return x + z * width;
}

// The value for the number u, from the `rows` parameters of its variable, which are overwritten.
template <typename T>
AR_FAST_HOST_DEVICE T transform_inverse(const Transform& transform, T* parameters, int64_t rows, T u,
                                        T& log_derivative) {
  if (transform.is_affine()) return affine_inverse(transform, parameters[0], parameters[1], u, log_derivative);
  return spline_inverse(transform, parameters, rows, u, log_derivative);
}

}  // namespace
}  // namespace ar_fast
