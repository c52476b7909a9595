// masked_linear in bfloat16 through torch's GEMM, for which oneDNN uses AMX if the CPU has it: panels of the sorted
// weight, masked, in bfloat16. Each panel takes one product over all that it sees, so that a sum is rounded once.
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_copy.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "masked_linear_paths.h"

namespace ar_fast {
namespace {

constexpr int64_t panel_features = 256, panel_area = 1024 * 1024;

// Calls body(begin, end) for panels of `features`, each of about panel_area elements at most.
template <typename Body>
void for_each_panel(int64_t features, int64_t steps, const Body& body) {
  const int64_t most = std::clamp<int64_t>(panel_area / std::max<int64_t>(steps, 1), 16, panel_features);
  for (int64_t begin = 0; begin < features; begin += most) body(begin, std::min(begin + most, features));
}

// The rectangle of the sorted weight, masked, in bfloat16.
at::Tensor packed(const HostMask& mask, const at::Tensor& weight, const MaskedRectangle& at) {
  const int64_t height = at.row_end - at.row_begin, width = at.column_end - at.column_begin;
  at::Tensor panel = empty({height, width}, at::kFloat);
  auto* const out = static_cast<float*>(panel.mutable_data_ptr());
  parallel(height * width > parallel_work, height, [&](int64_t begin, int64_t end) {
    AR_FAST_CPU_KERNEL(masked_pack)
    (ScalarType::bfloat16, mask.plan(), weight.const_data_ptr(),
     {at.row_begin + begin, at.row_begin + end, at.column_begin, at.column_end}, out + begin * width);
  });
  return panel.to(at::kBFloat16);
}

at::Tensor sorted(const at::Tensor& matrix, const at::Tensor& order) {
  return sort_features(matrix.to(at::kBFloat16), order);
}

// Sorted features (B, features) in bfloat16 -> the op's order, in float.
at::Tensor unsorted(const at::Tensor& matrix, const at::Tensor& order) {
  const at::Tensor result = matrix.to(at::kFloat);
  return order.defined() ? at::empty_like(result).index_copy_(1, order.to(at::kLong), result) : result;
}

}  // namespace

at::Tensor bfloat16_forward(const HostMask& mask, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias) {
  const int64_t in_features = mask.plan().in_features, out_features = mask.plan().out_features;
  const at::Tensor rows = sorted(x, mask.columns());
  const at::Tensor b = bias.defined() ? sorted(bias.unsqueeze(0), mask.rows()).squeeze(0) : bias;
  at::Tensor y = empty({x.size(0), out_features}, at::kBFloat16);
  for_each_panel(out_features, in_features, [&](int64_t begin, int64_t end) {
    const int64_t seen = mask.nested() ? mask.extent(end - 1) : in_features;
    const at::Tensor own = b.defined() ? b.narrow(0, begin, end - begin) : b;
    y.narrow(1, begin, end - begin)
        .copy_(at::linear(rows.narrow(1, 0, seen), packed(mask, weight, {begin, end, 0, seen}), own));
  });
  return unsorted(y, mask.rows());
}

at::Tensor bfloat16_grad_input(const HostMask& mask, const at::Tensor& dy, const at::Tensor& weight) {
  const int64_t in_features = mask.plan().in_features, out_features = mask.plan().out_features;
  const at::Tensor rows = sorted(dy, mask.rows());
  const std::vector<int32_t> starts = mask.nested() ? mask.starts() : std::vector<int32_t>(in_features + 1, 0);
  at::Tensor dx = empty({dy.size(0), in_features}, at::kBFloat16);
  for_each_panel(in_features, out_features, [&](int64_t begin, int64_t end) {
    const int64_t first = starts[begin];
    dx.narrow(1, begin, end - begin)
        .copy_(at::mm(rows.narrow(1, first, out_features - first),
                      packed(mask, weight, {first, out_features, begin, end})));
  });
  return unsorted(dx, mask.columns());
}

at::Tensor bfloat16_grad_weight(const HostMask& mask, const at::Tensor& dy, const at::Tensor& x) {
  const int64_t in_features = mask.plan().in_features, out_features = mask.plan().out_features;
  const at::Tensor units = sorted(dy, mask.rows()), inputs = sorted(x, mask.columns());
  at::Tensor dw = empty({out_features, in_features}, at::kBFloat16);
  for_each_panel(out_features, in_features, [&](int64_t begin, int64_t end) {
    const int64_t seen = mask.nested() ? mask.extent(end - 1) : in_features;
    const at::Tensor product =
        at::mm(units.narrow(1, begin, end - begin).t(), inputs.narrow(1, 0, seen)).to(at::kFloat).contiguous();
    const auto* values = static_cast<const float*>(product.const_data_ptr());
    parallel((end - begin) * in_features > parallel_work, end - begin, [&](int64_t first, int64_t last) {
      AR_FAST_CPU_KERNEL(masked_unpack)
      (ScalarType::bfloat16, mask.plan(), mask.rank(), values + first * seen, {begin + first, begin + last, 0, seen},
       dw.mutable_data_ptr());
    });
  });
  return dw;
}

}  // namespace ar_fast
