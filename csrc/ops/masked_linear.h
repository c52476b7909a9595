// Linear maps whose weight is masked: y = f(x (W * M)^T + b) with x (..., I), W (O, I), b (O), y (..., O).
//
// The mask plan (extents, rows, columns) or (tiles, dense) is described in kernels/masked_linear.h. The three ops are
// closed under differentiation: the derivative of each is made of the other two.
#pragma once

#include <string_view>

#include <ATen/core/Tensor.h>

#include "../kernels/masked_linear.h"
#include "common.h"

namespace ar_fast {

// The plan's tensors, as the schemas pass them.
struct MaskTensors {
  const OptionalTensor& extents;   // (O) int32
  const OptionalTensor& rows;      // (O) int32 or none
  const OptionalTensor& columns;   // (I) int32 or none
  const OptionalTensor& tiles;     // (ceil(O / 64), ceil(I / 64)) int32
  const OptionalTensor& dense;     // (O, I) bool
};

// The plan with contiguous tensors, for the kernels.
struct ContiguousMask {
  explicit ContiguousMask(const MaskTensors& mask)
      : extents(contiguous(mask.extents)), rows(contiguous(mask.rows)), columns(contiguous(mask.columns)),
        tiles(contiguous(mask.tiles)), dense(contiguous(mask.dense)) {}
  MaskPlan plan(int64_t out_features, int64_t in_features) const {
    return {out_features, in_features, index(extents), index(rows), index(columns), index(tiles),
            dense.defined() ? static_cast<const uint8_t*>(dense.const_data_ptr()) : nullptr};
  }
  at::Tensor extents, rows, columns, tiles, dense;

 private:
  static at::Tensor contiguous(const OptionalTensor& tensor) {
    return tensor.has_value() && tensor->defined() ? tensor->contiguous() : at::Tensor();
  }
  static const int32_t* index(const at::Tensor& tensor) {
    return tensor.defined() ? tensor.const_data_ptr<int32_t>() : nullptr;
  }
};

// y. Goes through the dispatcher, as a call of torch.ops does.
at::Tensor masked_linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& extents, const OptionalTensor& rows, const OptionalTensor& columns,
                         const OptionalTensor& tiles, const OptionalTensor& dense, std::string_view algorithm,
                         std::optional<std::string_view> activation);

// dX (..., I) = dY (W * M)
at::Tensor masked_linear_grad_input(const at::Tensor& grad_output, const at::Tensor& weight,
                                    const OptionalTensor& extents, const OptionalTensor& rows,
                                    const OptionalTensor& columns, const OptionalTensor& tiles,
                                    const OptionalTensor& dense, std::string_view algorithm);

// dW (O, I) = (dY^T X) * M, exactly zero where the mask is
at::Tensor masked_linear_grad_weight(const at::Tensor& grad_output, const at::Tensor& input,
                                     const OptionalTensor& extents, const OptionalTensor& rows,
                                     const OptionalTensor& columns, const OptionalTensor& tiles,
                                     const OptionalTensor& dense, std::string_view algorithm);

// Structure only: shapes, dtypes, devices. Shared by the CPU, CUDA and Meta implementations.
void check_masked_linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                         const MaskTensors& mask, std::string_view algorithm);
void check_masked_linear_grad_input(const at::Tensor& grad_output, const at::Tensor& weight, const MaskTensors& mask,
                                    std::string_view algorithm);
void check_masked_linear_grad_weight(const at::Tensor& grad_output, const at::Tensor& input, const MaskTensors& mask,
                                     std::string_view algorithm);

}  // namespace ar_fast
