// Masked products of small matrices on the CPU.
#include "../small_product.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>

#include <algorithm>

#include "../../kernels/cpu/small_product_cpu.h"
#include "../common.h"

namespace ar_fast {
namespace {

// How many multiply-adds justify another thread.
constexpr int64_t product_grain = int64_t{1} << 19;

at::Tensor contiguous(const at::Tensor& tensor) { return tensor.defined() ? tensor.contiguous() : tensor; }

// The matrix that a product multiplies by: weight * mask, transposed or as it is.
at::Tensor packed(const at::Tensor& weight, const at::Tensor& mask, bool transposed) {
  SmallProductSource source{.storage = storage_type(weight.scalar_type()),
                            .sums = weight.size(transposed ? 1 : 0),
                            .columns = weight.size(transposed ? 0 : 1),
                            .transposed = transposed,
                            .value = weight.const_data_ptr(),
                            .mask = mask.defined() ? mask.const_data_ptr() : nullptr};
  int64_t width = 0;
  AR_FAST_CPU_KERNEL(small_product_width)(source.storage, source.columns, &width);
  at::Tensor result = at::empty({source.sums, width}, weight.options());
  AR_FAST_CPU_KERNEL(small_product_pack)(source, result.mutable_data_ptr());
  return result;
}

// f(a p + bias), or f(a^T p + bias); p has so many columns.
at::Tensor multiply(const at::Tensor& a, bool transposed, const at::Tensor& p, int64_t columns, const at::Tensor& bias,
                    Activation activation) {
  const int64_t rows = a.size(transposed ? 1 : 0), sums = a.size(transposed ? 0 : 1);
  at::Tensor c = at::empty({rows, columns}, a.options());
  const SmallProduct product{.storage = storage_type(a.scalar_type()),
                             .sums = sums,
                             .columns = columns,
                             .a = a.const_data_ptr(),
                             .a_row = transposed ? 1 : a.size(1),
                             .a_sum = transposed ? a.size(1) : 1,
                             .p = p.const_data_ptr(),
                             .bias = bias.defined() ? bias.const_data_ptr() : nullptr,
                             .bias_row = bias.defined() && bias.dim() == 2 ? columns : 0,
                             .activation = activation,
                             .c = c.mutable_data_ptr()};
  const auto kernel = AR_FAST_CPU_KERNEL(small_product);
  // Tiles have six rows.
  const int64_t grain = std::max<int64_t>(1, product_grain / std::max<int64_t>(1, 6 * sums * columns));
  at::parallel_for(0, (rows + 5) / 6, grain, [&](int64_t begin, int64_t end) {
    kernel(product, 6 * begin, std::min(rows, 6 * end));
  });
  return c;
}

at::Tensor small_forward(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& mask,
                         const at::Tensor& bias, Activation activation) {
  const at::Tensor p = packed(weight.contiguous(), contiguous(mask), /*transposed=*/true);
  return multiply(input.contiguous(), false, p, weight.size(0), contiguous(bias), activation);
}

at::Tensor small_grad_input(const at::Tensor& grad, const at::Tensor& weight, const at::Tensor& mask) {
  const at::Tensor p = packed(weight.contiguous(), contiguous(mask), /*transposed=*/false);
  return multiply(grad.contiguous(), false, p, weight.size(1), {}, Activation::none);
}

at::Tensor small_grad_weight(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& mask) {
  const at::Tensor p = packed(input.contiguous(), {}, /*transposed=*/false);
  at::Tensor result = multiply(grad.contiguous(), true, p, input.size(1), {}, Activation::none);
  return mask.defined() ? result.mul_(mask) : result;
}

std::tuple<at::Tensor, at::Tensor> small_activation_backward(Activation activation, const at::Tensor& given,
                                                             const at::Tensor& result_of) {
  const at::Tensor grad = given.contiguous(), value = result_of.contiguous();
  const int64_t rows = grad.size(0), columns = grad.size(1);
  const bool activated = activation != Activation::none;
  at::Tensor result = activated ? at::empty(grad.sizes(), grad.options()) : grad;
  at::Tensor sums = at::empty({columns}, grad.options());
  const SmallActivationBackward own{.storage = storage_type(grad.scalar_type()),
                                    .rows = rows,
                                    .columns = columns,
                                    .activation = activation,
                                    .grad = grad.const_data_ptr(),
                                    .value = activated ? value.const_data_ptr() : nullptr,
                                    .result = activated ? result.mutable_data_ptr() : nullptr,
                                    .sums = sums.mutable_data_ptr()};
  const auto kernel = AR_FAST_CPU_KERNEL(small_activation_backward);
  // Blocks of columns are whole vectors in every instruction set.
  constexpr int64_t block = 16;
  const int64_t grain = std::max<int64_t>(1, product_grain / (8 * block * std::max<int64_t>(1, rows)));
  at::parallel_for(0, (columns + block - 1) / block, grain, [&](int64_t begin, int64_t end) {
    kernel(own, block * begin, std::min(columns, block * end));
  });
  return {result, sums};
}

constexpr SmallProducts cpu_products{small_forward, small_grad_input, small_grad_weight, small_activation_backward};
const bool registered = (small_products = &cpu_products, true);

}  // namespace
}  // namespace ar_fast
