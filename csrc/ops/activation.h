// Activations by their names in the ops.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "../kernels/types.h"

namespace ar_fast {

// The activation of the hidden layer of a NADE or a related model; raises for any name except sigmoid, tanh and relu.
Activation parse_activation(const char* op, std::string_view name);

// The activation of a layer of a masked network; without a name Activation::none; raises for an unknown name.
Activation parse_layer_activation(const char* op, const std::optional<std::string_view>& name);

// f(z) by torch's own function, with its gradient; z itself for Activation::none.
at::Tensor activate(Activation activation, const at::Tensor& z);

// Whether f'(z) can be computed from y = f(z).
bool derivative_from_result(Activation activation);

// grad f'(z), from y = f(z); grad itself for Activation::none. Differentiable in both.
at::Tensor activate_backward(Activation activation, const at::Tensor& grad, const at::Tensor& y);

}  // namespace ar_fast
