// The transforms of a flow's density, number by number: the contract on CPU and CUDA. The formulas are in transforms.h.
#pragma once

#include "transforms.h"
#include "types.h"

namespace ar_fast {

struct UnivariateTransform {
  Transform transform;
  ScalarType storage;        // of every tensor: float32 or float64
  int64_t batch, variables;  // B, D
  int64_t count;             // K, how many parameters a variable has
  bool by_parameter;         // a row of parameters is [K, D], or else [D, K]
  bool scale_first;          // an affine transform's raw scale stands before its shift
  const void* x;             // [B, D], rows x_stride apart
  int64_t x_stride;
  const void* parameters;    // [B, D K]
};

// y = f(x), and the sums over the variables of log dy/dx.
struct UnivariateTransformForward {
  void* y;        // [B, D]
  void* log_det;  // [B]
  void* scratch;  // [B, D K], on CUDA for a spline; otherwise null
};

struct UnivariateTransformBackward {
  const void* grad_y;        // [B, D]
  const void* grad_log_det;  // [B]
  void* grad_x;              // [B, D]
  void* grad_parameters;     // [B, D K], in the order of parameters
  void* scratch;             // [B, 2 D K], on CUDA for a spline; otherwise null
};

// Where parameter k of a variable stands in a row of parameters.
AR_FAST_HOST_DEVICE inline int64_t univariate_parameter(const UnivariateTransform& own, int64_t variable, int64_t k) {
  const int64_t index = own.scale_first && own.count == 2 ? 1 - k : k;
  return own.by_parameter ? index * own.variables + variable : variable * own.count + index;
}

}  // namespace ar_fast
