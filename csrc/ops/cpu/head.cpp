// The head ops on the CPU: rows on torch's threads.
#include "../head.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "../../kernels/cpu/head_cpu.h"
#include "values.h"

namespace ar_fast {
namespace {

// How many elements justify another thread.
constexpr int64_t grain = 16384;

void check_values(const char* op, const HeadTensors& t) {
  const Entries all{0, t.rows.variables};
  check_offset_values(op, "offsets", t.rows.offsets, t.rows.variables, t.rows.parameter_rows, all);
  check_head_values(op, t.rows.head, t.rows.variables, t.rows.parameter_rows, t.rows.offsets, all);
}

template <typename Body>
void over_rows(const HeadTensors& t, const Body& body) {
  at::parallel_for(0, t.rows.batch, std::max<int64_t>(1, grain / std::max<int64_t>(1, t.rows.parameter_rows)), body);
}

at::Tensor head_log_prob_cpu(const HeadLogProbArguments& a) {
  const char* op = HeadLogProbArguments::op;
  const HeadTensors t = prepare_head(a);
  check_values(op, t);
  at::Tensor log_prob = at::empty(a.x.sizes(), a.parameters.options());
  const HeadLogProb output{log_prob.mutable_data_ptr()};
  const auto kernel = AR_FAST_CPU_KERNEL(head_log_prob);
  over_rows(t, [&](int64_t begin, int64_t end) { kernel(t.rows, output, begin, end); });
  return log_prob;
}

std::tuple<at::Tensor, at::Tensor> head_log_prob_backward_cpu(const HeadLogProbBackwardArguments& a) {
  const char* op = HeadLogProbBackwardArguments::op;
  const HeadTensors t = prepare_head(a);
  check_values(op, t);
  const at::Tensor dense_grad = prepare_head_grad(t, a.grad);
  at::Tensor grad_parameters = at::empty(a.parameters.sizes(), a.parameters.options());
  at::Tensor grad_x = at::empty(a.x.sizes(), a.parameters.options());
  const HeadBackward output{dense_grad.const_data_ptr(), a.grad.dim() == 2 ? t.rows.variables : 0,
                            grad_parameters.mutable_data_ptr(), grad_x.mutable_data_ptr()};
  const auto kernel = AR_FAST_CPU_KERNEL(head_backward);
  over_rows(t, [&](int64_t begin, int64_t end) { kernel(t.rows, output, begin, end); });
  return {grad_parameters, grad_x};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) {
  implement<head_log_prob_cpu>(m);
  implement<head_log_prob_backward_cpu>(m);
}

}  // namespace ar_fast
