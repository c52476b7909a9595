// The head ops on CUDA: allocates outputs, and launches on the current stream. Nothing here synchronises, so values of
// x and offsets are not looked at; a category that is none has a log p of NaN.
#include "../head.h"

#include <ATen/ops/empty.h>

#include "../../kernels/cuda/head_cuda.h"
#include "../explain.h"
#include "../library.h"
#include "stream.h"

namespace ar_fast {
namespace {

void explain_head(const char* op, const HeadTensors& t) {
  explain(op, " on CUDA: a ", t.rows.head.kind == HeadKind::bernoulli ? "thread" : "warp", " per variable, ",
          t.rows.batch, " rows of ", t.rows.variables, " variables, ", t.rows.parameter_rows, " parameters a row");
}

at::Tensor head_log_prob_cuda_op(const at::Tensor& parameters, const at::Tensor& x, const OptionalTensor& offsets,
                                 std::string head, int64_t levels, const OptionalTensor& head_kinds) {
  const char* op = "head_log_prob";
  const Head parsed = parse_head(op, head, levels, head_kinds);
  check_head_log_prob(op, parameters, x, offsets, parsed, head_kinds);
  const c10::DeviceGuard guard(parameters.device());
  const HeadTensors t = prepare_head(parameters, x, offsets, parsed, head_kinds);
  at::Tensor log_prob = at::empty(x.sizes(), parameters.options());
  if (t.rows.batch == 0) return log_prob;
  explain_head(op, t);
  check_launch(op, head_log_prob_cuda(t.rows, {log_prob.mutable_data_ptr()}, current_stream(parameters)));
  return log_prob;
}

std::tuple<at::Tensor, at::Tensor> head_log_prob_backward_cuda_op(const at::Tensor& grad, const at::Tensor& parameters,
                                                                  const at::Tensor& x, const OptionalTensor& offsets,
                                                                  std::string head, int64_t levels,
                                                                  const OptionalTensor& head_kinds) {
  const char* op = "head_log_prob_backward";
  const Head parsed = parse_head(op, head, levels, head_kinds);
  check_head_log_prob(op, parameters, x, offsets, parsed, head_kinds);
  const c10::DeviceGuard guard(parameters.device());
  const HeadTensors t = prepare_head(parameters, x, offsets, parsed, head_kinds);
  const at::Tensor dense_grad = prepare_head_grad(t, grad);
  at::Tensor grad_parameters = at::empty(parameters.sizes(), parameters.options());
  at::Tensor grad_x = at::empty(x.sizes(), parameters.options());
  if (t.rows.batch == 0) return {grad_parameters, grad_x};
  explain_head(op, t);
  const HeadBackward output{dense_grad.const_data_ptr(), grad.dim() == 2 ? t.rows.variables : 0,
                            grad_parameters.mutable_data_ptr(), grad_x.mutable_data_ptr()};
  check_launch(op, head_backward_cuda(t.rows, output, current_stream(parameters)));
  return {grad_parameters, grad_x};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) {
  m.impl("head_log_prob", head_log_prob_cuda_op);
  m.impl("head_log_prob_backward", head_log_prob_backward_cuda_op);
}

}  // namespace ar_fast
