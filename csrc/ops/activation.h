// Activations, by the names that the ops take.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "../kernels/types.h"

namespace ar_fast {

// Of the hidden layer of a NADE and of its relatives; raises for what is not sigmoid, tanh or relu.
Activation parse_activation(const char* op, std::string_view name);

// Of a layer of a masked network: nothing is Activation::none; raises where no activation has this name.
Activation parse_layer_activation(const char* op, const std::optional<std::string_view>& name);

// f(z) by torch's own function, with its gradient; z itself where there is no activation.
at::Tensor activate(Activation activation, const at::Tensor& z);

// Whether f'(z) can be told from y = f(z).
bool derivative_from_result(Activation activation);

// grad f'(z), from y = f(z); grad itself where there is no activation. Differentiable in both.
at::Tensor activate_backward(Activation activation, const at::Tensor& grad, const at::Tensor& y);

}  // namespace ar_fast
