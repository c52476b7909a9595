// The backward sweep of an inverse on the CPU: rows on torch's threads.
#include "../inverse_adjoint.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "../../kernels/cpu/inverse_adjoint_cpu.h"

namespace ar_fast {
namespace {

// How many multiply-adds justify another thread.
constexpr int64_t adjoint_grain = int64_t{1} << 19;

at::Tensor inverse_adjoint_cpu(const InverseAdjointArguments& a) {
  const InverseAdjointSweep sweep = check_inverse_adjoint(a);
  const at::ScalarType type = a.grad.scalar_type();
  if (type != at::kFloat && type != at::kDouble) return inverse_adjoint_by_torch(a, sweep);
  std::vector<at::Tensor> kept{a.grad.contiguous(), a.factors.contiguous()};
  std::vector<InverseAdjointStep> steps;
  std::vector<int64_t> offsets{0};
  int64_t weights = 0;
  for (size_t s = 0; s < sweep.steps.size(); ++s) {
    const InverseAdjointSweep::Step& step = sweep.steps[s];
    offsets.push_back(offsets.back() + sweep.units(s));
    steps.push_back({.source = step.source, .other = step.other});
    if (step.weight != nullptr) {
      kept.push_back(step.weight->contiguous());
      steps.back().weight = kept.back().const_data_ptr();
      steps.back().weight_row = kept.back().size(1);
      weights += kept.back().numel();
    }
    if (step.slope != nullptr) {
      // Slopes that all rows share are one row, expanded.
      const bool shared = step.slope->stride(0) == 0 && step.slope->stride(1) == 1;
      kept.push_back(shared ? *step.slope : step.slope->contiguous());
      steps.back().slope = kept.back().const_data_ptr();
      steps.back().slope_row = kept.back().stride(0);
    }
  }
  offsets.push_back(offsets.back() + sweep.units(sweep.steps.size()));
  at::Tensor adjoint = at::empty(a.grad.sizes(), a.grad.options());
  const InverseAdjoint own{.storage = storage_type(type),
                           .variables = sweep.variables,
                           .parameters = sweep.parameters,
                           .levels = sweep.levels,
                           .count = static_cast<int64_t>(steps.size()),
                           .steps = steps.data(),
                           .ends = a.ends.data(),
                           .offsets = offsets.data(),
                           .grad = kept[0].const_data_ptr(),
                           .factors = kept[1].const_data_ptr(),
                           .adjoint = adjoint.mutable_data_ptr()};
  int64_t rows = 0;
  AR_FAST_CPU_KERNEL(inverse_adjoint_rows)(own.storage, &rows);
  const auto kernel = AR_FAST_CPU_KERNEL(inverse_adjoint);
  const int64_t grain = std::max<int64_t>(1, adjoint_grain / std::max<int64_t>(1, rows * weights));
  at::parallel_for(0, (sweep.batch + rows - 1) / rows, grain, [&](int64_t begin, int64_t end) {
    at::Tensor scratch = at::empty({offsets.back() * rows}, a.grad.options());
    kernel(own, begin * rows, std::min(sweep.batch, end * rows), scratch.mutable_data_ptr());
  });
  return adjoint;
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<inverse_adjoint_cpu>(m); }

}  // namespace ar_fast
