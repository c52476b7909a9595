// Linear maps whose weight is masked: y = f(x (W * M)^T + b) with x (..., I), W (O, I), b (O), y (..., O).
//
// The mask plan (extents, rows, columns) or (tiles, dense) is described in kernels/masked_linear.h. The three ops are
// closed under differentiation: the derivative of each consists of the other two.
//
// `steps` is what the host knows of a sorted staircase (rows and columns none), or empty: with s = mask_step_rows(O),
// the extents of rows 0, s - 1, 2 s - 1, ... and O - 1. The ops are the same without it. Its values are not compared
// with extents, whose values may lie on a GPU.
#pragma once

#include <string_view>

#include <ATen/core/Tensor.h>

#include "../kernels/masked_linear.h"
#include "arguments.h"
#include "common.h"

namespace ar_fast {

// Rows between two steps: a multiple of mask_tile_size, so that there are at most mask_most_blocks of them.
inline int64_t mask_step_rows(int64_t out_features) {
  return (out_features + mask_most_blocks * mask_tile_size - 1) / (mask_most_blocks * mask_tile_size) * mask_tile_size;
}

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
      : extents(contiguous_or_undefined(mask.extents)), rows(contiguous_or_undefined(mask.rows)),
        columns(contiguous_or_undefined(mask.columns)), tiles(contiguous_or_undefined(mask.tiles)),
        dense(contiguous_or_undefined(mask.dense)) {}
  MaskPlan plan(int64_t out_features, int64_t in_features) const {
    return {out_features,          in_features,           address<int32_t>(extents), address<int32_t>(rows),
            address<int32_t>(columns), address<int32_t>(tiles), address<uint8_t>(dense)};
  }
  at::Tensor extents, rows, columns, tiles, dense;

 private:
  // Null tells which kind of plan it is, but a tensor without elements has no address either: it gets one that is
  // never read.
  template <typename T>
  static const T* address(const at::Tensor& tensor) {
    static constexpr T nothing{};
    if (!tensor.defined()) return nullptr;
    return tensor.numel() == 0 ? &nothing : static_cast<const T*>(tensor.const_data_ptr());
  }
};

// -> y
struct MaskedLinearArguments {
  static constexpr const char* op = "masked_linear";
  using Result = at::Tensor;
  at::Tensor input, weight;
  OptionalTensor bias, extents, rows, columns, tiles, dense;
  std::string_view algorithm;
  std::optional<std::string_view> activation;
  at::IntArrayRef steps;
};

// -> dX (..., I) = dY (W * M)
struct MaskedLinearGradInputArguments {
  static constexpr const char* op = "masked_linear_grad_input";
  using Result = at::Tensor;
  at::Tensor grad_output, weight;
  OptionalTensor extents, rows, columns, tiles, dense;
  std::string_view algorithm;
  at::IntArrayRef steps;
};

// -> dW (O, I) = (dY^T X) * M, exactly zero for masked weights
struct MaskedLinearGradWeightArguments {
  static constexpr const char* op = "masked_linear_grad_weight";
  using Result = at::Tensor;
  at::Tensor grad_output, input;
  OptionalTensor extents, rows, columns, tiles, dense;
  std::string_view algorithm;
  at::IntArrayRef steps;
};

template <typename Arguments>
MaskTensors mask_of(const Arguments& a) {
  return {a.extents, a.rows, a.columns, a.tiles, a.dense};
}

// Checks structure only: shapes, dtypes, devices. The CPU, CUDA and Meta implementations share it.
void check_masked_linear(const MaskedLinearArguments& a);
void check_masked_linear_grad_input(const MaskedLinearGradInputArguments& a);
void check_masked_linear_grad_weight(const MaskedLinearGradWeightArguments& a);

}  // namespace ar_fast
