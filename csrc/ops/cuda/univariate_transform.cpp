// The univariate transforms of a flow's density on CUDA: they allocate outputs, and launch on the current stream.
#include "../univariate_transform.h"

#include <ATen/ops/empty.h>

#include "../../kernels/cuda/univariate_transform_cuda.h"
#include "../explain.h"
#include "stream.h"

namespace ar_fast {
namespace {

// A spline's numbers of a row, so many times; affine transforms need none.
at::Tensor spline_scratch(const UnivariateTransformTensors& t, int64_t times) {
  if (t.own.transform.is_affine()) return {};
  return at::empty({t.own.batch, times * t.own.variables * t.own.count}, t.x.options());
}

void* data_or_null(const at::Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

std::tuple<at::Tensor, at::Tensor> univariate_transform_cuda_op(const UnivariateTransformArguments& a) {
  const c10::DeviceGuard guard(a.x.device());
  const UnivariateTransformTensors t = prepare_univariate_transform(a);
  at::Tensor y = at::empty(t.x.sizes(), t.x.options()), log_det = at::empty({t.x.size(0)}, t.x.options());
  if (t.own.batch == 0) return {y, log_det};
  const at::Tensor scratch = spline_scratch(t, 1);
  explain(a.op, " on CUDA: a warp per row, ", t.own.batch, " rows of ", t.own.variables, " variables");
  const UnivariateTransformForward output{y.mutable_data_ptr(), log_det.mutable_data_ptr(), data_or_null(scratch)};
  check_launch(a.op, univariate_transform_cuda(t.own, output, current_stream(t.x)));
  return {y, log_det};
}

std::tuple<at::Tensor, at::Tensor> univariate_transform_backward_cuda_op(
    const UnivariateTransformBackwardArguments& a) {
  const c10::DeviceGuard guard(a.x.device());
  const UnivariateTransformTensors t = prepare_univariate_transform(a);
  const at::Tensor grad_y = a.grad_y.contiguous(), grad_log_det = a.grad_log_det.contiguous();
  at::Tensor grad_x = at::empty(t.x.sizes(), t.x.options());
  at::Tensor grad_parameters = at::empty(t.parameters.sizes(), t.parameters.options());
  if (t.own.batch == 0) return {grad_x, grad_parameters};
  const at::Tensor scratch = spline_scratch(t, 2);
  const UnivariateTransformBackward output{grad_y.const_data_ptr(), grad_log_det.const_data_ptr(),
                                           grad_x.mutable_data_ptr(), grad_parameters.mutable_data_ptr(),
                                           data_or_null(scratch)};
  check_launch(a.op, univariate_transform_backward_cuda(t.own, output, current_stream(t.x)));
  return {grad_x, grad_parameters};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) {
  implement<univariate_transform_cuda_op>(m);
  implement<univariate_transform_backward_cuda_op>(m);
}

}  // namespace ar_fast
