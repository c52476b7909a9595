// Transforms of flows. A variable's parameters say an increasing function y = f(x). The density of a flow needs f, log
// dy/dx and their gradients; its sampler is given a number u, where other samplers draw from a head, and takes x = f^-1(u).
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

template <typename T>
AR_FAST_HOST_DEVICE T transform_sigmoid(T a) {
  return T(1) / (T(1) + std::exp(-a));
}

// The scale s of an affine transform, its logarithm, and d log s / da.
template <typename T>
struct AffineScale {
  T scale, log_scale, slope;
};

template <typename T>
AR_FAST_HOST_DEVICE AffineScale<T> affine_scale(const Transform& transform, T a) {
  const auto constant = [&](int i) { return static_cast<T>(transform.constants[i]); };
  switch (transform.kind) {
    case TransformKind::affine_soft_clip: {
      const T rest = T(1) + std::abs(a / constant(0)), log_scale = a / rest;
      return {std::exp(log_scale), log_scale, T(1) / (rest * rest)};
    }
    case TransformKind::affine_clamp: {
      const bool low = a < constant(0), high = a > constant(1);
      const T log_scale = low ? constant(0) : high ? constant(1) : a;
      return {std::exp(log_scale), log_scale, low || high ? T(0) : T(1)};
    }
    case TransformKind::affine_softplus: {
      const T scale = transform_softplus(a) + constant(0);
      return {scale, std::log(scale), transform_sigmoid(a) / scale};
    }
    case TransformKind::affine_sigmoid: {
      const T gate = transform_sigmoid(a + constant(0)), scale = gate + constant(1);
      return {scale, std::log(scale), gate * (T(1) - gate) / scale};
    }
    default: {
      const T gate = a + constant(0);
      return {transform_sigmoid(gate), -transform_softplus(-gate), transform_sigmoid(-gate)};
    }
  }
}

// y = f(x) of an affine transform; log_derivative receives log dy/dx.
template <typename T>
AR_FAST_HOST_DEVICE T affine_forward(const Transform& transform, T shift, T a, T x, T& log_derivative) {
  const AffineScale<T> own = affine_scale(transform, a);
  log_derivative = own.log_scale;
  // For a gated transform, slope is 1 - s.
  return own.scale * x + (transform.kind == TransformKind::affine_gated ? own.slope * shift : shift);
}

// The gradients by x, shift and a, of a number whose gradients by y and by log dy/dx are these.
template <typename T>
AR_FAST_HOST_DEVICE T affine_backward(const Transform& transform, T shift, T a, T x, T grad_y, T grad_log, T& grad_shift,
                                      T& grad_a) {
  const AffineScale<T> own = affine_scale(transform, a);
  const bool gated = transform.kind == TransformKind::affine_gated;
  grad_shift = gated ? grad_y * own.slope : grad_y;
  grad_a = (grad_y * (gated ? x - shift : x) * own.scale + grad_log) * own.slope;
  return grad_y * own.scale;
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
  // Turns the exponentials, which are `grads`, into the gradients by the raw numbers, given those by the first knot of a
  // bin and by the bin's size.
  AR_FAST_HOST_DEVICE void backward(const Transform& transform, const T* raw, int64_t bin, T by_knot, T by_size,
                                    T* grads) const {
    // By share k: those before the bin move its knot. What all shares have in common cancels in a softmax.
    T mean = T(0);
    for (int64_t k = 0; k <= bin; ++k) mean += (k < bin ? by_knot : by_size) * grads[k];
    // share_ is (1 - K least) / sum of the exponentials.
    const T rest = T(1) - static_cast<T>(bins_) * least_;
    mean = rest > T(0) ? mean * share_ / rest : T(0);
    for (int64_t k = 0; k < bins_; ++k) {
      const T by_share = k < bin ? by_knot : k == bin ? by_size : T(0);
      const T by_clipped = size_ * share_ * grads[k] * (by_share - mean);
      if (transform.kind == TransformKind::spline_soft_clip) {
        const T clip = T(1) + std::abs(T(2) * raw[k] / static_cast<T>(transform.constants[2]));
        grads[k] = by_clipped / (clip * clip);
      } else {
        grads[k] = by_clipped * static_cast<T>(transform.constants[5]);
      }
    }
  }

 private:
  const T* const exponentials_;
  const int64_t bins_;
  const T low_, size_;
  T least_, share_;
};

// A spline, made of the `rows` parameters of its variable, whose widths and heights are overwritten.
template <typename T>
struct Spline {
  const Transform& transform;
  const T* derivatives;
  int64_t bins;
  bool own_ends;
  SplineSide<T> widths, heights;

  AR_FAST_HOST_DEVICE Spline(const Transform& of, T* parameters, int64_t rows)
      : transform(of), derivatives(parameters + 2 * bins_of(rows)), bins(bins_of(rows)), own_ends(rows % 3 == 1),
        widths(of, parameters, bins, 2), heights(of, parameters + bins, bins, 3) {}

  AR_FAST_HOST_DEVICE static int64_t bins_of(int64_t rows) { return rows % 3 == 1 ? (rows - 1) / 3 : (rows + 1) / 3; }
  AR_FAST_HOST_DEVICE bool contains(T number) const {
    return !(number < static_cast<T>(transform.constants[0]) || number > static_cast<T>(transform.constants[1]));
  }
  // Which of the raw derivatives belongs to a knot; -1 for an end whose derivative is 1.
  AR_FAST_HOST_DEVICE int64_t raw_derivative(int64_t knot) const {
    return own_ends ? knot : knot == 0 || knot == bins ? -1 : knot - 1;
  }
  AR_FAST_HOST_DEVICE T derivative(int64_t knot) const {
    const int64_t index = raw_derivative(knot);
    if (index < 0) return T(1);
    const T raw = derivatives[index];
    return transform.kind == TransformKind::spline_soft_clip
               ? std::exp(raw / (T(1) + std::abs(raw / static_cast<T>(transform.constants[2]))))
               : static_cast<T>(transform.constants[4]) + transform_softplus(raw);
  }
};

// The bin that contains a number of one axis: its first knot, its size, and the derivatives at its ends.
template <typename T>
struct SplineBin {
  int64_t bin;
  T x, y, width, height, first, last;

  // by_x: the number is an x, or else a y.
  AR_FAST_HOST_DEVICE SplineBin(const Spline<T>& spline, bool by_x, T number) {
    const SplineSide<T>&widths = spline.widths, &heights = spline.heights;
    const SplineSide<T>& side = by_x ? widths : heights;
    T x_share = T(0), y_share = T(0), next_x = widths.next(0, x_share), next_y = heights.next(0, y_share);
    int64_t k = 0;
    while (k + 1 < spline.bins && !(number < side.at(k + 1, by_x ? next_x : next_y))) {
      ++k;
      x_share = next_x;
      y_share = next_y;
      next_x = widths.next(k, x_share);
      next_y = heights.next(k, y_share);
    }
    bin = k;
    x = widths.at(k, x_share);
    y = heights.at(k, y_share);
    width = widths.at(k + 1, next_x) - x;
    height = heights.at(k + 1, next_y) - y;
    first = spline.derivative(k);
    last = spline.derivative(k + 1);
  }
};

// y = f(x) of a spline with `rows` parameters, which are overwritten.
template <typename T>
AR_FAST_HOST_DEVICE T spline_forward(const Transform& transform, T* parameters, int64_t rows, T x, T& log_derivative) {
  log_derivative = T(0);
  const Spline<T> spline(transform, parameters, rows);
  if (!spline.contains(x)) return x;
  const SplineBin<T> own(spline, true, x);
  const T slope = own.height / own.width, z = (x - own.x) / own.width, rest = T(1) - z, middle = z * rest;
  const T below = slope + (own.first + own.last - T(2) * slope) * middle;
  const T slope_of_f = own.first * rest * rest + T(2) * slope * middle + own.last * z * z;
  log_derivative = T(2) * std::log(slope) + std::log(slope_of_f) - T(2) * std::log(below);
  return own.y + own.height * (slope * z * z + own.first * middle) / below;
}

// The gradient by x of a number whose gradients by y and by log dy/dx are these. grads, the gradients by the `rows`
// parameters, is scratch first.
template <typename T>
AR_FAST_HOST_DEVICE T spline_backward(const Transform& transform, const T* parameters, int64_t rows, T x, T grad_y,
                                      T grad_log, T* grads) {
  for (int64_t k = 0; k < rows; ++k) grads[k] = parameters[k];
  const Spline<T> spline(transform, grads, rows);
  if (!spline.contains(x)) {
    for (int64_t k = 0; k < rows; ++k) grads[k] = T(0);
    return grad_y;
  }
  const SplineBin<T> own(spline, true, x);
  const T slope = own.height / own.width, z = (x - own.x) / own.width, rest = T(1) - z, middle = z * rest;
  const T curvature = own.first + own.last - T(2) * slope;
  const T above = slope * z * z + own.first * middle, below = slope + curvature * middle;
  const T slope_of_f = own.first * rest * rest + T(2) * slope * middle + own.last * z * z;
  // y = y_k + height above / below, log dy/dx = 2 log slope + log slope_of_f - 2 log below, as functions of z, slope,
  // the two derivatives, and the height.
  const T turn = T(1) - T(2) * z, square = below * below;
  const T of_y = grad_y * own.height / square, of_slope_of_f = grad_log / slope_of_f, of_below = T(2) * grad_log / below;
  const T by_z = of_y * slope * slope_of_f +
                 of_slope_of_f * T(2) * (own.last * z + slope * turn - own.first * rest) - of_below * curvature * turn;
  const T by_slope = of_y * (z * z * below - above * (T(1) - T(2) * middle)) + T(2) * grad_log / slope +
                     of_slope_of_f * T(2) * middle - of_below * (T(1) - T(2) * middle);
  const T by_first = of_y * middle * (below - above) + of_slope_of_f * rest * rest - of_below * middle;
  const T by_last = -of_y * middle * above + of_slope_of_f * z * z - of_below * middle;
  const T by_height = grad_y * above / below + by_slope / own.width;
  const T by_width = -(by_slope * slope + by_z * z) / own.width;
  const T by_x = by_z / own.width;
  // The first knot moves against x along its axis; y moves with its own.
  spline.widths.backward(transform, parameters, own.bin, -by_x, by_width, grads);
  spline.heights.backward(transform, parameters + spline.bins, own.bin, grad_y, by_height, grads + spline.bins);
  T* const by_derivatives = grads + 2 * spline.bins;
  const T* const raw = parameters + 2 * spline.bins;
  for (int64_t k = 0; k < rows - 2 * spline.bins; ++k) by_derivatives[k] = T(0);
  for (int64_t end = 0; end < 2; ++end) {
    const int64_t index = spline.raw_derivative(own.bin + end);
    if (index < 0) continue;
    T by_raw;
    if (transform.kind == TransformKind::spline_soft_clip) {
      const T clip = T(1) + std::abs(raw[index] / static_cast<T>(transform.constants[2]));
      by_raw = (end == 0 ? own.first : own.last) / (clip * clip);
    } else {
      by_raw = transform_sigmoid(raw[index]);
    }
    by_derivatives[index] = by_raw * (end == 0 ? by_first : by_last);
  }
  return by_x;
}

// The inverse of a spline with `rows` parameters, which are overwritten.
template <typename T>
AR_FAST_HOST_DEVICE T spline_inverse(const Transform& transform, T* parameters, int64_t rows, T u,
                                     T& log_derivative) {
  log_derivative = T(0);
  const Spline<T> spline(transform, parameters, rows);
  if (!spline.contains(u)) return u;
  const SplineBin<T> own(spline, false, u);
  const T width = own.width, height = own.height, first = own.first, last = own.last, slope = height / width;
  const T curvature = first + last - T(2) * slope, above = u - own.y;
  const T a = height * (slope - first) + above * curvature, b = height * first - above * curvature, c = -slope * above;
  const T discriminant = b * b - T(4) * a * c;
  // The bin contains the value, whatever rounding says.
  const T root = T(2) * c / (-b - std::sqrt(discriminant < T(0) ? T(0) : discriminant));
  const T z = root < T(0) ? T(0) : root > T(1) ? T(1) : root, rest = T(1) - z;
  const T slope_of_f = slope * slope * (T(2) * slope * z * rest + first * rest * rest + last * z * z);
  log_derivative = T(2) * std::log(slope + curvature * z * rest) - std::log(slope_of_f);
  return own.x + z * width;
}

// y = f(x) from the `rows` parameters of its variable, which are overwritten; log_derivative receives log dy/dx.
template <typename T>
AR_FAST_HOST_DEVICE T transform_forward(const Transform& transform, T* parameters, int64_t rows, T x,
                                        T& log_derivative) {
  if (transform.is_affine()) return affine_forward(transform, parameters[0], parameters[1], x, log_derivative);
  return spline_forward(transform, parameters, rows, x, log_derivative);
}

// The gradient by x, and grads (rows), those by the parameters, from the gradients by y and by log dy/dx.
template <typename T>
AR_FAST_HOST_DEVICE T transform_backward(const Transform& transform, const T* parameters, int64_t rows, T x, T grad_y,
                                         T grad_log, T* grads) {
  if (transform.is_affine()) {
    return affine_backward(transform, parameters[0], parameters[1], x, grad_y, grad_log, grads[0], grads[1]);
  }
  return spline_backward(transform, parameters, rows, x, grad_y, grad_log, grads);
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
