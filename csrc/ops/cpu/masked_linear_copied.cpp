// masked_linear through torch's GEMM over masked copies of bounded pieces of the weight.
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/mm_cpu_dispatch.h>

#include <algorithm>

#include "masked_linear_paths.h"

namespace ar_fast {
namespace {

constexpr int64_t piece_area = 512 * 1024;

// Calls body(first row, last row, their masked weights in the compute type).
template <typename Body>
void for_each_piece(const HostMask& mask, const at::Tensor& weight, const Body& body) {
  const MaskPlan& plan = mask.plan();
  const int64_t columns = plan.in_features, height = std::max<int64_t>(16, piece_area / std::max<int64_t>(columns, 1));
  const at::ScalarType compute = compute_type(weight.scalar_type());
  const at::Tensor buffer = empty({std::min(height, plan.out_features), columns}, compute);
  const int64_t row_bytes = columns * buffer.element_size();
  for (int64_t row = 0; row < plan.out_features; row += height) {
    const int64_t end = std::min(row + height, plan.out_features);
    parallel((end - row) * columns > parallel_work, end - row, [&](int64_t first, int64_t last) {
      MaskedRows arguments{};
      arguments.storage = storage_type(weight.scalar_type());
      arguments.plan = plan;
      arguments.rank = mask.rank();
      arguments.weight = weight.const_data_ptr();
      arguments.output = static_cast<char*>(buffer.mutable_data_ptr()) + first * row_bytes;
      AR_FAST_CPU_KERNEL(masked_copy_rows)(arguments, row + first, row + last);
    });
    body(row, end, buffer.narrow(0, 0, end - row));
  }
}

}  // namespace

at::Tensor copied_forward(const HostMask& mask, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  at::Tensor y = empty({x.size(0), mask.plan().out_features}, x.scalar_type());
  for_each_piece(mask, weight, [&](int64_t begin, int64_t end, const at::Tensor& weights) {
    at::Tensor part = y.narrow(1, begin, end - begin);
    if (bias.defined()) {
      at::cpu::addmm_out(part, bias.narrow(0, begin, end - begin), x, weights.t());
    } else {
      at::cpu::mm_out(part, x, weights.t());
    }
  });
  return y;
}

}  // namespace ar_fast
