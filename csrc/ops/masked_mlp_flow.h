// A chain of autoregressive transforms, the density of a flow. In each of them a masked network computes the parameters
// of each variable from the variables before it and a context, and a univariate transform is applied with them
// (univariate_transform.h); then the variables may be permuted. It is for networks so small that what a call costs
// decides: products are of whole matrices, weights multiplied by their masks. On the CPU they have kernels of their own
// for layers of few inputs (small_product.h); elsewhere they are torch's.
//
// Shapes: x (B, D), context (B, C). All networks have the same program, which is that of masked_mlp.h, where a term may
// also read masked_mlp_context, the context. Value 0 is x, with the context's columns before or after it if
// context_columns says so. weights, (units, units of the value read), masks of the same shapes, or (0) for a term
// without, and biases, (units), (B, units), or (0) for none: one for each term of the program, in its order, the
// transforms one after the other. The last layer has the D K parameters, as (D, K), or as (K, D) if by_parameter.
// orders: none, or one for each transform, after which y[:, order] takes the place of y: (D) int64, or (0).
// Types: all other tensors float32 or float64; masks may also be bool or integer.
#pragma once

#include <string_view>
#include <tuple>

#include "arguments.h"
#include "common.h"

namespace ar_fast {

// -> y (B, D), and log |det dy/dx| (B)
struct MaskedMlpFlowArguments {
  static constexpr const char* op = "masked_mlp_flow";
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor x;
  OptionalTensor context;
  at::TensorList weights, masks, biases;
  at::IntArrayRef program;
  at::TensorList orders;
  std::string_view context_columns, activation, transform;
  at::ArrayRef<double> constants;
  bool by_parameter, scale_first;
};

}  // namespace ar_fast
