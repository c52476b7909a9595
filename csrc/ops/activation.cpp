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

#include <utility>

namespace ar_fast {

MlpActivation parse_mlp_activation(const char* op, const std::optional<std::string_view>& name) {
  if (!name.has_value()) return MlpActivation::none;
  static constexpr std::pair<std::string_view, MlpActivation> activations[] = {
      {"relu", MlpActivation::relu},         {"sigmoid", MlpActivation::sigmoid},
      {"tanh", MlpActivation::tanh},         {"elu", MlpActivation::elu},
      {"softplus", MlpActivation::softplus}, {"silu", MlpActivation::silu},
      {"gelu", MlpActivation::gelu},         {"leaky_relu", MlpActivation::leaky_relu}};
  for (const auto& [known, activation] : activations) {
    if (*name == known) return activation;
  }
  TORCH_CHECK(false, op,
              ": activation must be relu, sigmoid, tanh, elu, softplus, silu, gelu or leaky_relu, got '", *name, "'");
}

at::Tensor activate(MlpActivation activation, const at::Tensor& z) {
  switch (activation) {
    case MlpActivation::none: return z;
    case MlpActivation::relu: return at::relu(z);
    case MlpActivation::sigmoid: return at::sigmoid(z);
    case MlpActivation::tanh: return at::tanh(z);
    case MlpActivation::elu: return at::elu(z);
    case MlpActivation::softplus: return at::softplus(z);
    case MlpActivation::silu: return at::silu(z);
    case MlpActivation::gelu: return at::gelu(z);
    case MlpActivation::leaky_relu: return at::leaky_relu(z);
  }
  return z;
}

bool derivative_from_result(MlpActivation activation) {
  return activation != MlpActivation::silu && activation != MlpActivation::gelu;
}

at::Tensor activate_backward(MlpActivation activation, const at::Tensor& grad, const at::Tensor& y) {
  switch (activation) {
    case MlpActivation::relu: return at::threshold_backward(grad, y, 0);
    case MlpActivation::sigmoid: return at::sigmoid_backward(grad, y);
    case MlpActivation::tanh: return at::tanh_backward(grad, y);
    case MlpActivation::elu: return at::elu_backward(grad, 1, 1, 1, true, y);
    case MlpActivation::softplus: return at::mul(grad, at::expm1(y.neg()).neg());
    case MlpActivation::leaky_relu: return at::leaky_relu_backward(grad, y, 0.01, true);
    case MlpActivation::none: return grad;
    default: TORCH_CHECK(false, "ar_fast: silu' and gelu' cannot be told from the result");
  }
}

}  // namespace ar_fast
