// The univariate transforms of a flow's density: the entry points, and what the CPU and CUDA implementations share. The
// formulas, names and constants are in kernels/transforms.h.
//
// Shapes: x (B, D); parameters (B, D K), a row as (D, K), or as (K, D) if by_parameter. scale_first: an affine
// transform's raw scale stands before its shift. Types: all tensors float32 or float64.
#pragma once

#include <string_view>
#include <tuple>

#include "../kernels/univariate_transform.h"
#include "arguments.h"
#include "common.h"

namespace ar_fast {

// -> y = f(x) (B, D), and log |det dy/dx| (B)
struct UnivariateTransformArguments {
  static constexpr const char* op = "univariate_transform";
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor x, parameters;
  std::string_view transform;
  at::ArrayRef<double> constants;
  bool by_parameter, scale_first;
};

// grad_y (B, D), grad_log_det (B) -> grad_x (B, D), grad_parameters (B, D K)
struct UnivariateTransformBackwardArguments {
  static constexpr const char* op = "univariate_transform_backward";
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor grad_y, grad_log_det, x, parameters;
  std::string_view transform;
  at::ArrayRef<double> constants;
  bool by_parameter, scale_first;
};

// --- shared by the implementations

struct UnivariateTransformTensors {
  at::Tensor x, parameters;
  UnivariateTransform own;
};

// Checks either op's arguments; contiguous tensors, and the structure that points into them.
UnivariateTransformTensors prepare_univariate_transform(const UnivariateTransformArguments& a);
UnivariateTransformTensors prepare_univariate_transform(const UnivariateTransformBackwardArguments& a);

}  // namespace ar_fast
