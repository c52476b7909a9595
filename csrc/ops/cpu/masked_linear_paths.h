// The ways to compute masked_linear on the CPU, and what they share. Matrices are contiguous, (B, features), in the
// compute type; the weight is contiguous in its storage type.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/index_select.h>

#include <atomic>

#include "masked_linear_plan.h"

namespace ar_fast {

constexpr int64_t parallel_work = 32 * 1024;

// Six permuted rows with up to this many features stay in L1 and are read unsorted. Longer rows are sorted first.
constexpr int64_t in_place_features = 1024;

inline at::Tensor empty(at::IntArrayRef sizes, at::ScalarType type) {
  return at::detail::empty_cpu(sizes, type, at::kStrided, at::kCPU, false, std::nullopt);
}

template <typename Body>
void parallel(bool worth, int64_t size, const Body& body) {
  if (worth) {
    at::parallel_for(0, size, 1, body);
  } else {
    body(0, size);
  }
}

// The features of a matrix in sorted order; the matrix itself if the plan is sorted.
inline at::Tensor sort_features(const at::Tensor& matrix, const at::Tensor& order) {
  return order.defined() ? at::index_select(matrix, 1, order) : matrix;
}

// torch's GEMM over the unmasked rectangles of the weight.
at::Tensor panels_forward(const HostMask& mask, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);
at::Tensor panels_grad_input(const HostMask& mask, const at::Tensor& dy, const at::Tensor& weight);
at::Tensor panels_grad_weight(const HostMask& mask, const at::Tensor& dy, const at::Tensor& x, at::ScalarType storage);

// The same in bfloat16, for weights stored in bfloat16: with AMX the product is many times faster than in float.
at::Tensor bfloat16_forward(const HostMask& mask, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias);
at::Tensor bfloat16_grad_input(const HostMask& mask, const at::Tensor& dy, const at::Tensor& weight);
at::Tensor bfloat16_grad_weight(const HostMask& mask, const at::Tensor& dy, const at::Tensor& x);

// torch's GEMM over all columns of a bounded piece of the masked weight at a time, in the weight's own order: nothing
// is skipped, but nothing is gathered or scattered either.
at::Tensor copied_forward(const HostMask& mask, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

// Our own kernels: for a few rows they stream the weight once, for more they compute a product of tiles. `undefined` is
// set where a result may be NaN.
at::Tensor fused_forward(const HostMask& mask, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                         Activation activation, std::atomic<bool>& undefined);
at::Tensor fused_grad_input(const HostMask& mask, const at::Tensor& dy, const at::Tensor& weight,
                            std::atomic<bool>& undefined);
at::Tensor fused_grad_weight(const HostMask& mask, const at::Tensor& dy, const at::Tensor& x, at::ScalarType storage);

}  // namespace ar_fast
