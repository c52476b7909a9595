// Masked products of small matrices, which the CPU has kernels for; elsewhere torch computes them.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "../kernels/types.h"

namespace ar_fast {

// The CPU's functions, or null in a library without its kernels. weight and mask (O, I), of the same dtype; an
// undefined mask is none.
struct SmallProducts {
  // f(input (B, I) (weight * mask)^T + bias (O) or (B, O), or an undefined one)
  at::Tensor (*forward)(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& mask,
                        const at::Tensor& bias, Activation activation);
  // grad (B, O) (weight * mask)
  at::Tensor (*grad_input)(const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& mask);
  // (grad^T input) * mask
  at::Tensor (*grad_weight)(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& mask);
  // grad (B, N) f'(z), from value = f(z), and its sums over rows (N); f none, or one of those of which
  // derivative_from_result is true.
  std::tuple<at::Tensor, at::Tensor> (*activation_backward)(Activation activation, const at::Tensor& grad,
                                                            const at::Tensor& value);
};

inline const SmallProducts* small_products = nullptr;

}  // namespace ar_fast
