// The activations of masked layers, by the names that the ops take.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "../kernels/types.h"

namespace ar_fast {

// Nothing is MlpActivation::none; raises where no activation has this name.
MlpActivation parse_mlp_activation(const char* op, const std::optional<std::string_view>& name);

// f(z) by torch's own function, with its gradient; z itself where there is no activation.
at::Tensor activate(MlpActivation activation, const at::Tensor& z);

// Whether f'(z) can be told from y = f(z).
bool derivative_from_result(MlpActivation activation);

// grad f'(z), from y = f(z); grad itself where there is no activation. Differentiable in both.
at::Tensor activate_backward(MlpActivation activation, const at::Tensor& grad, const at::Tensor& y);

}  // namespace ar_fast
