// NADE on CUDA: allocates outputs and scratch, and launches on the current stream. Nothing here synchronises, so values
// of order, offsets and categories are not looked at.
#include "../nade.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "../../kernels/cuda/nade_cuda.h"
#include "../library.h"
#include "stream.h"

namespace ar_fast {
namespace {

at::TensorOptions compute_options(const NadeTensors& t) {
  return t.in_weight.options().dtype(compute_type(t.in_weight.scalar_type()));
}

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
  const char* op = "nade";
  check_algorithm(op, algorithm, {"auto", "chunks"});
  check_nade(op, x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale);
  const NadeTensors t = prepare_nade(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets,
                                     activation_scale, parse_activation(op, activation));
  at::Tensor parameters = at::empty({t.input.batch, t.model.out_rows}, compute_options(t));
  NadeForward output{};
  output.parameters = parameters.mutable_data_ptr();
  run_forward(op, t, output);
  return parameters;
}

std::tuple<at::Tensor, at::Tensor> nade_log_prob_forward_cuda(const at::Tensor& x, const at::Tensor& in_weight,
                                                              const at::Tensor& in_bias, const at::Tensor& out_weight,
                                                              const at::Tensor& out_bias, const OptionalTensor& order,
                                                              const OptionalTensor& activation_scale,
                                                              std::string activation, bool per_variable,
                                                              bool keep_logits, std::string algorithm) {
  const char* op = "nade_log_prob";
  check_algorithm(op, algorithm, {"auto", "chunks"});
  check_nade(op, x, in_weight, in_bias, out_weight, out_bias, order, std::nullopt, std::nullopt, activation_scale);
  check_bernoulli(op, x, in_weight, out_weight);
  const NadeTensors t = prepare_nade(x, in_weight, in_bias, out_weight, out_bias, order, std::nullopt, std::nullopt,
                                     activation_scale, parse_activation(op, activation));
  const auto options = compute_options(t);
  at::Tensor log_prob = per_variable ? at::empty(x.sizes(), options) : at::empty({x.size(0)}, options);
  at::Tensor logits = keep_logits ? at::empty(x.sizes(), options) : at::empty({0}, options);
  NadeForward output{};
  output.parameters = keep_logits ? logits.mutable_data_ptr() : nullptr;
  (per_variable ? output.log_prob_per_variable : output.log_prob) = log_prob.mutable_data_ptr();
  run_forward(op, t, output);
  return {log_prob, logits};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> nade_backward_cuda_op(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
    const at::Tensor& out_weight, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& activation_scale, std::string activation, bool needs_x,
    bool needs_activation_scale, std::string algorithm) {
  const char* op = "nade_backward";
  check_algorithm(op, algorithm, {"auto", "chunks"});
  check_nade(op, x, in_weight, in_bias, out_weight, at::Tensor(), order, in_offsets, out_offsets, activation_scale);
  const NadeTensors t = prepare_nade(x, in_weight, in_bias, out_weight, at::Tensor(), order, in_offsets, out_offsets,
                                     activation_scale, parse_activation(op, activation));
  const int64_t batch = t.input.batch;
  TORCH_CHECK(grad.dim() == 2 && grad.size(0) == batch && grad.size(1) == t.model.out_rows, op,
              ": grad must have shape (B, R_out) = (", batch, ", ", t.model.out_rows, "), got ", grad.sizes());
  TORCH_CHECK(!needs_x || t.x.scalar_type() != at::kLong, op, ": x is an integer category and has no gradient");
  check_limits(op, t.model, batch);
  const auto options = compute_options(t);
  const at::Tensor dense_grad = grad.to(options.dtype()).contiguous();
  at::Tensor grad_x = needs_x ? at::empty(x.sizes(), options) : at::empty({0}, options);
  at::Tensor grad_in_weight = at::empty(in_weight.sizes(), in_weight.options());
  at::Tensor grad_in_bias = at::empty(in_bias.sizes(), options);
  at::Tensor grad_out_weight = at::empty(out_weight.sizes(), in_weight.options());
  at::Tensor grad_scale =
      needs_activation_scale ? at::empty({batch, t.model.variables}, options) : at::empty({0}, options);

  NadeBackward output{};
  output.grad_parameters = dense_grad.const_data_ptr();
  output.grad_in_weight = grad_in_weight.mutable_data_ptr();
  output.grad_out_weight = grad_out_weight.mutable_data_ptr();
  output.grad_in_bias = grad_in_bias.mutable_data_ptr();
  output.grad_x = needs_x ? grad_x.mutable_data_ptr() : nullptr;
  output.grad_activation_scale = needs_activation_scale ? grad_scale.mutable_data_ptr() : nullptr;
  const c10::DeviceGuard guard(in_weight.device());
  const at::Tensor scratch =
      at::empty({nade_backward_cuda_scratch(t.model, t.input)}, in_weight.options().dtype(at::kByte));
  check_launch(op, nade_backward_cuda(t.model, t.input, output, scratch.mutable_data_ptr(), current_stream(in_weight)));
  if (needs_activation_scale) grad_scale = grad_scale.sum(0);
  return {grad_x, grad_in_weight, grad_in_bias, grad_out_weight, grad_scale};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> nade_sample_cuda_op(
    const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& out_weight, const at::Tensor& out_bias,
    const OptionalTensor& order, const OptionalTensor& activation_scale, const OptionalTensor& given,
    const OptionalTensor& known, std::string activation, int64_t seed, int64_t first_index, int64_t start, int64_t stop,
    double temperature, std::string algorithm) {
  const char* op = "nade_sample";
  check_algorithm(op, algorithm, {"auto", "rows"});
  check_nade_sample(state, in_weight, out_weight, out_bias, order, activation_scale, given, known, start, stop,
                    temperature);
  const NadeTensors t = prepare_nade(at::Tensor(), in_weight, at::Tensor(), out_weight, out_bias, order, std::nullopt,
                                     std::nullopt, activation_scale, parse_activation(op, activation));
  const int64_t batch = state.size(0), most = nade_sample_cuda_max_hidden(t.model.storage);
  check_limits(op, t.model, batch);
  TORCH_CHECK(t.model.hidden <= most, op, ": on CUDA in_weight must have at most ", most, " hidden units in ",
              in_weight.scalar_type(), ", got shape ", in_weight.sizes());
  at::Tensor next = state.clone(at::MemoryFormat::Contiguous);
  at::Tensor values = at::empty({batch, stop - start}, state.options());
  at::Tensor log_prob = at::zeros({batch}, state.options().dtype(at::kDouble));
  const at::Tensor given_rows = given.has_value() ? given->contiguous() : at::Tensor();
  const at::Tensor known_rows = known.has_value() ? known->contiguous() : at::Tensor();

  NadeSample sample{};
  sample.batch = batch;
  sample.start = start;
  sample.stop = stop;
  sample.seed = static_cast<uint64_t>(seed);
  sample.first_index = first_index;
  sample.temperature = temperature;
  sample.given = given_rows.defined() ? given_rows.const_data_ptr() : nullptr;
  sample.known = known_rows.defined() ? static_cast<const uint8_t*>(known_rows.const_data_ptr()) : nullptr;
  sample.state = next.mutable_data_ptr();
  sample.values = values.mutable_data_ptr();
  sample.log_prob = log_prob.mutable_data_ptr<double>();
  if (batch > 0 && stop > start) {
    const c10::DeviceGuard guard(in_weight.device());
    check_launch(op, nade_sample_cuda(t.model, sample, current_stream(in_weight)));
  }
  return {values, log_prob, next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) {
  m.impl("nade", nade_cuda);
  m.impl("nade_log_prob_forward", nade_log_prob_forward_cuda);
  m.impl("nade_backward", nade_backward_cuda_op);
  m.impl("nade_sample", nade_sample_cuda_op);
}

}  // namespace ar_fast
