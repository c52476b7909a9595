// NADE on CUDA: allocates outputs and scratch, and launches on the current stream. Nothing here synchronises, so values
// of order, offsets and categories are not looked at.
#include "../nade.h"

#include <ATen/ops/empty.h>

#include "../../kernels/cuda/nade_cuda.h"
#include "../library.h"
#include "stream.h"

namespace ar_fast {
namespace {

void check_limits(const char* op, const NadeModel& model, int64_t batch) {
  constexpr int64_t limit = int64_t{1} << 30;
  TORCH_CHECK(model.variables < limit && model.hidden < limit && batch < limit, op,
              ": the CUDA kernels take fewer than 2^30 rows, variables and hidden units, got ", batch, ", ",
              model.variables, " and ", model.hidden);
}

void run_forward(const char* op, const NadeTensors& t, const NadeForward& output) {
  if (t.input.batch == 0) return;
  check_limits(op, t.model, t.input.batch);
  const c10::DeviceGuard guard(t.in_weight.device());
  const at::Tensor scratch =
      at::empty({nade_forward_cuda_scratch(t.model, t.input.batch)}, t.in_weight.options().dtype(at::kByte));
  check_launch(op,
               nade_forward_cuda(t.model, t.input, output, scratch.mutable_data_ptr(), current_stream(t.in_weight)));
}

at::Tensor nade_cuda(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                     const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                     const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                     const OptionalTensor& activation_scale, std::string activation, std::string algorithm) {
  const auto t = prepare_nade_forward(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets,
                                      activation_scale, activation, algorithm);
  run_forward("nade", t, t.output);
  return t.parameters;
}

std::tuple<at::Tensor, at::Tensor> nade_log_prob_forward_cuda(
    const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias, const at::Tensor& out_weight,
    const at::Tensor& out_bias, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& activation_scale, std::string activation,
    std::string head, int64_t levels, bool per_variable, bool keep_parameters, std::string algorithm) {
  const auto t = prepare_nade_log_prob(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets,
                                       activation_scale, activation, head, levels, per_variable, keep_parameters,
                                       algorithm);
  run_forward("nade_log_prob", t, t.output);
  return {t.log_prob, t.parameters};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> nade_backward_cuda_op(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
    const at::Tensor& out_weight, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& activation_scale, std::string activation, bool needs_x,
    bool needs_activation_scale, std::string algorithm) {
  const char* op = "nade_backward";
  const auto t = prepare_nade_backward(grad, x, in_weight, in_bias, out_weight, order, in_offsets, out_offsets,
                                       activation_scale, activation, needs_x, needs_activation_scale, algorithm);
  check_limits(op, t.model, t.input.batch);
  const c10::DeviceGuard guard(in_weight.device());
  const at::Tensor scratch =
      at::empty({nade_backward_cuda_scratch(t.model, t.input)}, in_weight.options().dtype(at::kByte));
  check_launch(op,
               nade_backward_cuda(t.model, t.input, t.output, scratch.mutable_data_ptr(), current_stream(in_weight)));
  return t.result();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> nade_sample_cuda_op(
    const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& out_weight, const at::Tensor& out_bias,
    const OptionalTensor& order, const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
    const OptionalTensor& activation_scale, const OptionalTensor& given, const OptionalTensor& known,
    int64_t variables, std::string activation, std::string head, int64_t levels, int64_t seed, int64_t first_index,
    int64_t start, int64_t stop, double temperature, std::string algorithm) {
  const char* op = "nade_sample";
  const auto t = prepare_nade_sample(state, in_weight, out_weight, out_bias, order, in_offsets, out_offsets,
                                     activation_scale, given, known, variables, activation, head, levels, seed,
                                     first_index, start, stop, temperature, algorithm);
  const int64_t most = nade_sample_cuda_max_hidden(t.model.storage);
  check_limits(op, t.model, t.sample.batch);
  TORCH_CHECK(t.model.hidden <= most, op, ": on CUDA in_weight must have at most ", most, " hidden units in ",
              in_weight.scalar_type(), ", got shape ", in_weight.sizes());
  if (t.sample.batch > 0 && stop > start) {
    const c10::DeviceGuard guard(in_weight.device());
    check_launch(op, nade_sample_cuda(t.model, t.sample, current_stream(in_weight)));
  }
  return {t.values, t.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) {
  m.impl("nade", nade_cuda);
  m.impl("nade_log_prob_forward", nade_log_prob_forward_cuda);
  m.impl("nade_backward", nade_backward_cuda_op);
  m.impl("nade_sample", nade_sample_cuda_op);
}

}  // namespace ar_fast
