#include "activation.h"

#include <ATen/ops/elu.h>
#include <ATen/ops/elu_backward.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>

namespace ar_fast {

namespace {

constexpr std::pair<std::string_view, Activation> names[] = {
    {"relu", Activation::relu},         {"sigmoid", Activation::sigmoid}, {"tanh", Activation::tanh},
    {"elu", Activation::elu},           {"softplus", Activation::softplus}, {"silu", Activation::silu},
    {"gelu", Activation::gelu},         {"leaky_relu", Activation::leaky_relu}};

// The activation of a name among those allowed, which the error lists in their order.
Activation parse(const char* op, std::string_view name, std::initializer_list<std::string_view> allowed) {
  for (const auto& [known, activation] : names) {
    if (name == known && std::find(allowed.begin(), allowed.end(), name) != allowed.end()) return activation;
  }
  std::string list;
  for (const std::string_view& one : allowed) {
    if (&one != allowed.begin()) list += &one + 1 == allowed.end() ? " or " : ", ";
    list += one;
  }
  TORCH_CHECK(false, op, ": activation must be ", list, ", got '", name, "'");
}

}  // namespace

Activation parse_activation(const char* op, std::string_view name) {
  return parse(op, name, {"sigmoid", "tanh", "relu"});
}

Activation parse_layer_activation(const char* op, const std::optional<std::string_view>& name) {
  if (!name.has_value()) return Activation::none;
  return parse(op, *name, {"relu", "sigmoid", "tanh", "elu", "softplus", "silu", "gelu", "leaky_relu"});
}

at::Tensor activate(Activation activation, const at::Tensor& z) {
  switch (activation) {
    case Activation::none: return z;
    case Activation::relu: return at::relu(z);
    case Activation::sigmoid: return at::sigmoid(z);
    case Activation::tanh: return at::tanh(z);
    case Activation::elu: return at::elu(z);
    case Activation::softplus: return at::softplus(z);
    case Activation::silu: return at::silu(z);
    case Activation::gelu: return at::gelu(z);
    case Activation::leaky_relu: return at::leaky_relu(z);
  }
  return z;
}

bool derivative_from_result(Activation activation) {
  return activation != Activation::silu && activation != Activation::gelu;
}

at::Tensor activate_backward(Activation activation, const at::Tensor& grad, const at::Tensor& y) {
  switch (activation) {
    case Activation::relu: return at::threshold_backward(grad, y, 0);
    case Activation::sigmoid: return at::sigmoid_backward(grad, y);
    case Activation::tanh: return at::tanh_backward(grad, y);
    case Activation::elu: return at::elu_backward(grad, 1, 1, 1, true, y);
    case Activation::softplus: return at::mul(grad, at::expm1(y.neg()).neg());
    case Activation::leaky_relu: return at::leaky_relu_backward(grad, y, 0.01, true);
    case Activation::none: return grad;
    default: TORCH_CHECK(false, "ar_fast: silu' and gelu' cannot be computed from the result");
  }
}

}  // namespace ar_fast
