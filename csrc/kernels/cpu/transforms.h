// The inverse of an affine transform (kernels/transforms.h) for a vector of rows.
#pragma once

#include "../transforms.h"
#include "vec_math.h"

namespace ar_fast::CPU_CAPABILITY {

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
