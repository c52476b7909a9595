// The head ops on CUDA: they allocate outputs, and launch on the current stream. Nothing here synchronises, so the
// values of x and offsets are not checked; a number that is not a category has a log p of NaN.
#include "../head.h"

#include <ATen/ops/empty.h>

#include "../../kernels/cuda/head_cuda.h"
#include "../explain.h"
#include "stream.h"

namespace ar_fast {
namespace {

void explain_head(const char* op, const HeadTensors& t) {
  explain(op, " on CUDA: a ", t.rows.head.kind == HeadKind::bernoulli ? "thread" : "warp", " per variable, ",
          t.rows.batch, " rows of ", t.rows.variables, " variables, ", t.rows.parameter_rows, " parameters a row");
}

at::Tensor head_log_prob_cuda_op(const HeadLogProbArguments& a) {
  const char* op = HeadLogProbArguments::op;
  const c10::DeviceGuard guard(a.parameters.device());
  const HeadTensors t = prepare_head(a);
  at::Tensor log_prob = at::empty(a.x.sizes(), a.parameters.options());
  if (t.rows.batch == 0) return log_prob;
  explain_head(op, t);
  check_launch(op, head_log_prob_cuda(t.rows, {log_prob.mutable_data_ptr()}, current_stream(a.parameters)));
  return log_prob;
}

std::tuple<at::Tensor, at::Tensor> head_log_prob_backward_cuda_op(const HeadLogProbBackwardArguments& a) {
  const char* op = HeadLogProbBackwardArguments::op;
  const c10::DeviceGuard guard(a.parameters.device());
  const HeadTensors t = prepare_head(a);
  const at::Tensor dense_grad = prepare_head_grad(t, a.grad);
  at::Tensor grad_parameters = at::empty(a.parameters.sizes(), a.parameters.options());
  at::Tensor grad_x = at::empty(a.x.sizes(), a.parameters.options());
  if (t.rows.batch == 0) return {grad_parameters, grad_x};
  explain_head(op, t);
  const HeadBackward output{dense_grad.const_data_ptr(), a.grad.dim() == 2 ? t.rows.variables : 0,
                            grad_parameters.mutable_data_ptr(), grad_x.mutable_data_ptr()};
  check_launch(op, head_backward_cuda(t.rows, output, current_stream(a.parameters)));
  return {grad_parameters, grad_x};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) {
  implement<head_log_prob_cuda_op>(m);
  implement<head_log_prob_backward_cuda_op>(m);
}

}  // namespace ar_fast
