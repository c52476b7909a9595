// One autoregressive transform of a flow's density: a masked network computes the parameters of each variable from the
// variables before it, and a univariate transform is applied with them (univariate_transform.h). It is for networks so
// small that what a call costs decides: products are of whole matrices, weights multiplied by their masks. On the CPU
// they have kernels of their own for layers of few inputs (small_product.h); elsewhere they are torch's.
//
// Shapes: input (B, I), whose columns first ... first + D - 1 are the variables x; the others, a context, are only
// inputs of the network. program: as in masked_mlp.h. weights, (units, units of the value read), and masks of the same
// shapes: one for each term of the program, in its order; value 0 is the input. biases: one for each layer, (units),
// (B, units), or (0) for none. The last layer has the D K parameters, as (D, K), or as (K, D) if by_parameter.
// Types: all tensors float32 or float64; masks may also be bool or integer.
#pragma once

#include <string_view>
#include <tuple>

#include "arguments.h"
#include "common.h"

namespace ar_fast {

// -> y (B, D), and log |det dy/dx| (B)
struct MaskedMlpTransformArguments {
  static constexpr const char* op = "masked_mlp_transform";
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor input;
  at::TensorList weights, masks, biases;
  at::IntArrayRef program;
  int64_t variables, first;
  std::string_view activation, transform;
  at::ArrayRef<double> constants;
  bool by_parameter, scale_first;
};

}  // namespace ar_fast
