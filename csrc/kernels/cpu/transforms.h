// Affine transforms (kernels/transforms.h) for vectors of numbers.
#pragma once

#include "../transforms.h"
#include "vec_math.h"

namespace ar_fast::CPU_CAPABILITY {

template <typename T>
struct AffineScales {
  Vec<T> scale, log_scale, slope;
};

// affine_scale of kernels/transforms.h.
template <typename T>
AR_FAST_INLINE AffineScales<T> affine_scale(const Transform& transform, const Vec<T>& a) {
  const auto constant = [&](int i) { return Vec<T>(static_cast<T>(transform.constants[i])); };
  const Vec<T> one(T(1));
  switch (transform.kind) {
    case TransformKind::affine_soft_clip: {
      const Vec<T> rest = one + (a / constant(0)).abs(), log_scale = a / rest;
      return {log_scale.exp(), log_scale, one / (rest * rest)};
    }
    case TransformKind::affine_clamp: {
      const Vec<T> log_scale = at::vec::minimum(at::vec::maximum(a, constant(0)), constant(1));
      return {log_scale.exp(), log_scale, Vec<T>::blendv(zero<T>(), one, log_scale == a)};
    }
    case TransformKind::affine_softplus: {
      const Vec<T> scale = softplus<T>(a) + constant(0);
      return {scale, scale.log(), sigmoid<T>(a) / scale};
    }
    case TransformKind::affine_sigmoid: {
      const Vec<T> gate = sigmoid<T>(a + constant(0)), scale = gate + constant(1);
      return {scale, scale.log(), gate * (one - gate) / scale};
    }
    default: {
      const Vec<T> gate = a + constant(0);
      return {sigmoid<T>(gate), softplus<T>(gate.neg()).neg(), sigmoid<T>(gate.neg())};
    }
  }
}

template <typename T>
AR_FAST_INLINE Vec<T> affine_inverse(const Transform& transform, const Vec<T>& shift, const Vec<T>& a, const Vec<T>& u,
                                     Vec<T>& log_derivative) {
  const auto constant = [&](int i) { return Vec<T>(static_cast<T>(transform.constants[i])); };
  const Vec<T> one(T(1));
  Vec<T> log_scale, scale;
  switch (transform.kind) {
    case TransformKind::affine_soft_clip:
      log_scale = a / (one + (a / constant(0)).abs());
      scale = log_scale.exp();
      break;
    case TransformKind::affine_clamp:
      log_scale = at::vec::minimum(at::vec::maximum(a, constant(0)), constant(1));
      scale = log_scale.exp();
      break;
    case TransformKind::affine_softplus:
      scale = softplus<T>(a) + constant(0);
      log_scale = scale.log();
      break;
    case TransformKind::affine_sigmoid:
      scale = sigmoid<T>(a + constant(0)) + constant(1);
      log_scale = scale.log();
      break;
    default: {
      const Vec<T> gate = a + constant(0);
      log_derivative = softplus<T>(gate.neg());
      return shift + (u - shift) * (one + gate.neg().exp());
    }
  }
  log_derivative = log_scale.neg();
  return (u - shift) / scale;
}

}  // namespace ar_fast::CPU_CAPABILITY
