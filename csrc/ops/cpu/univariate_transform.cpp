// The univariate transforms of a flow's density on the CPU: rows on torch's threads.
#include "../univariate_transform.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "../../kernels/cpu/univariate_transform_cpu.h"

namespace ar_fast {
namespace {

// How many parameters justify another thread.
constexpr int64_t parameter_grain = 8192;

template <typename Body>
void over_transformed_rows(const UnivariateTransformTensors& t, const Body& body) {
  const UnivariateTransform& own = t.own;
  at::parallel_for(0, own.batch, std::max<int64_t>(1, parameter_grain / (own.variables * own.count)),
                   [&](int64_t begin, int64_t end) {
                     // A spline's numbers: its parameters, and their gradients.
                     const at::Tensor scratch = own.transform.is_affine()
                                                    ? at::Tensor()
                                                    : at::empty({2 * own.count}, t.x.options());
                     body(begin, end, scratch.defined() ? scratch.mutable_data_ptr() : nullptr);
                   });
}

std::tuple<at::Tensor, at::Tensor> univariate_transform_cpu(const UnivariateTransformArguments& a) {
  const UnivariateTransformTensors t = prepare_univariate_transform(a);
  at::Tensor y = at::empty(t.x.sizes(), t.x.options()), log_det = at::empty({t.x.size(0)}, t.x.options());
  const UnivariateTransformForward output{y.mutable_data_ptr(), log_det.mutable_data_ptr(), nullptr};
  const auto kernel = AR_FAST_CPU_KERNEL(univariate_transform);
  over_transformed_rows(t, [&](int64_t begin, int64_t end, void* scratch) {
    kernel(t.own, output, begin, end, scratch);
  });
  return {y, log_det};
}

std::tuple<at::Tensor, at::Tensor> univariate_transform_backward_cpu(const UnivariateTransformBackwardArguments& a) {
  const UnivariateTransformTensors t = prepare_univariate_transform(a);
  const at::Tensor grad_y = a.grad_y.contiguous(), grad_log_det = a.grad_log_det.contiguous();
  at::Tensor grad_x = at::empty(t.x.sizes(), t.x.options());
  at::Tensor grad_parameters = at::empty(t.parameters.sizes(), t.parameters.options());
  const UnivariateTransformBackward output{grad_y.const_data_ptr(), grad_log_det.const_data_ptr(),
                                           grad_x.mutable_data_ptr(), grad_parameters.mutable_data_ptr(), nullptr};
  const auto kernel = AR_FAST_CPU_KERNEL(univariate_transform_backward);
  over_transformed_rows(t, [&](int64_t begin, int64_t end, void* scratch) {
    kernel(t.own, output, begin, end, scratch);
  });
  return {grad_x, grad_parameters};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) {
  implement<univariate_transform_cpu>(m);
  implement<univariate_transform_backward_cpu>(m);
}

}  // namespace ar_fast
