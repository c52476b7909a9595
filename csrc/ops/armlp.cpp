#include "armlp.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "library.h"
#include "nade.h"

namespace ar_fast {

namespace {

void check_bias(const char* name, const at::Tensor& bias, const at::Tensor& in_weight) {
  const auto type = in_weight.scalar_type();
  TORCH_CHECK(bias.scalar_type() == type || bias.scalar_type() == compute_type(type), armlp_name, ": ", name,
              " must have the dtype of in_weight, ", dtype_name(type), ", or ", dtype_name(compute_type(type)), ", got ",
              dtype_name(bias.scalar_type()));
  check_same_device(armlp_name, name, bias, "in_weight", in_weight);
}

}  // namespace

void check_armlp_sample(const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& block_starts,
                        const at::Tensor& in_bias, const at::Tensor& out_weight, const at::Tensor& out_bias,
                        const OptionalTensor& order, const OptionalTensor& offsets, const OptionalTensor& in_offsets,
                        const OptionalTensor& given, const OptionalTensor& known, const Head& head,
                        const OptionalTensor& head_kinds, int64_t start, int64_t stop, double temperature,
                        const std::string& algorithm) {
  const char* op = armlp_name;
  check_algorithm(op, algorithm, {"auto", "gather"});
  check_dim(op, "state", state, 2, "(B, D)");
  const c10::SymInt variables = state.sym_size(1);
  TORCH_CHECK(variables > 0, op, ": state must have at least one variable, got shape ", state.sym_sizes());
  check_dim(op, "in_weight", in_weight, 2, "(rows, H)");
  check_floating(op, "in_weight", in_weight);
  const c10::SymInt hidden = in_weight.sym_size(1);
  check_dtype(op, "state", state, compute_type(in_weight.scalar_type()));
  check_same_device(op, "state", state, "in_weight", in_weight);
  check_dim(op, "block_starts", block_starts, 1, "(blocks + 1)");
  check_size(op, "block_starts", block_starts, 0, (variables + armlp_block - 1) / armlp_block + 1,
             "entries, one more than the blocks of networks,");
  check_dtype(op, "block_starts", block_starts, at::kLong);
  check_same_device(op, "block_starts", block_starts, "in_weight", in_weight);
  TORCH_CHECK(in_bias.dim() == 2 || in_bias.dim() == 3, op, ": in_bias must have shape (D, H) or (B, D, H), got ",
              in_bias.sym_sizes());
  check_size(op, "in_bias", in_bias, in_bias.dim() - 2, variables, "networks, one per variable,");
  check_size(op, "in_bias", in_bias, in_bias.dim() - 1, hidden, "hidden units, as in_weight has,");
  if (in_bias.dim() == 3) check_size(op, "in_bias", in_bias, 0, state.sym_size(0), "rows, as state has,");
  check_bias("in_bias", in_bias, in_weight);
  check_dim(op, "out_weight", out_weight, 2, "(R_out, H)");
  check_size(op, "out_weight", out_weight, 1, hidden, "hidden units, as in_weight has,");
  check_same_dtype(op, "out_weight", out_weight, "in_weight", in_weight);
  check_same_device(op, "out_weight", out_weight, "in_weight", in_weight);
  const c10::SymInt out_rows = out_weight.sym_size(0);
  check_dim(op, "out_bias", out_bias, 1, "(R_out)");
  check_size(op, "out_bias", out_bias, 0, out_rows, "entries, one per row of out_weight,");
  check_bias("out_bias", out_bias, in_weight);
  if (offsets.has_value()) {
    check_dim(op, "offsets", *offsets, 1, "(D + 1)");
    check_size(op, "offsets", *offsets, 0, variables + 1, "entries, one more than the variables,");
    check_dtype(op, "offsets", *offsets, at::kLong);
    check_same_device(op, "offsets", *offsets, "in_weight", in_weight);
  } else {
    TORCH_CHECK(out_rows % variables == 0 && out_rows > 0, op, ": out_weight must have a multiple of D = ", variables,
                " rows unless offsets is given, got shape ", out_weight.sym_sizes());
  }
  check_head_rows(op, head, "out_weight", out_rows, variables, offsets);
  check_head_kinds(op, head_kinds, variables, "in_weight", in_weight);
  check_in_offsets(op, head, in_offsets, variables, "in_weight", in_weight);
  if (order.has_value()) {
    check_dim(op, "order", *order, 1, "(D)");
    check_size(op, "order", *order, 0, variables, "entries, one per variable,");
    check_dtype(op, "order", *order, at::kLong);
    check_same_device(op, "order", *order, "in_weight", in_weight);
  }
  check_sample_arguments(op, state, variables, compute_type(in_weight.scalar_type()), given, known, start, stop,
                         temperature);
}

ArmlpSampleTensors prepare_armlp_sample(const at::Tensor& state, const at::Tensor& in_weight,
                                        const at::Tensor& block_starts, const at::Tensor& in_bias,
                                        const at::Tensor& out_weight, const at::Tensor& out_bias,
                                        const OptionalTensor& order, const OptionalTensor& offsets,
                                        const OptionalTensor& in_offsets, const OptionalTensor& given,
                                        const OptionalTensor& known, const std::string& activation,
                                        const std::string& head, int64_t levels, const OptionalTensor& head_kinds,
                                        int64_t seed, int64_t first_index, int64_t start, int64_t stop,
                                        double temperature, const std::string& algorithm) {
  const Head parsed = parse_head(armlp_name, head, levels, head_kinds);
  const Activation parsed_activation = parse_activation(armlp_name, activation);
  check_armlp_sample(state, in_weight, block_starts, in_bias, out_weight, out_bias, order, offsets, in_offsets, given,
                     known, parsed, head_kinds, start, stop, temperature, algorithm);
  const auto compute = compute_type(in_weight.scalar_type());
  ArmlpSampleTensors t;
  t.in_weight = in_weight.contiguous();
  t.block_starts = block_starts.contiguous();
  t.in_bias = in_bias.to(compute).contiguous();
  t.out_weight = out_weight.contiguous();
  t.out_bias = out_bias.to(compute).contiguous();
  t.order = contiguous_or_undefined(order);
  t.offsets = contiguous_or_undefined(offsets);
  t.in_offsets = contiguous_or_undefined(in_offsets);
  t.given = contiguous_or_undefined(given);
  t.known = contiguous_or_undefined(known);
  t.next = state.clone(at::MemoryFormat::Contiguous);
  t.values = at::empty({state.size(0), stop - start}, state.options());
  t.log_prob = at::zeros({state.size(0)}, state.options().dtype(at::kDouble));
  ArmlpSample& sample = t.sample;
  sample.storage = storage_type(in_weight.scalar_type());
  sample.activation = parsed_activation;
  sample.head = with_kinds(parsed, head_kinds, t.head_kinds);
  sample.batch = state.size(0);
  sample.variables = state.size(1);
  sample.hidden = in_weight.size(1);
  sample.out_rows = out_weight.size(0);
  sample.in_weight = t.in_weight.const_data_ptr();
  sample.block_starts = t.block_starts.const_data_ptr<int64_t>();
  sample.in_bias = t.in_bias.const_data_ptr();
  sample.in_bias_stride = in_bias.dim() == 3 ? sample.variables * sample.hidden : 0;
  sample.out_weight = t.out_weight.const_data_ptr();
  sample.out_bias = t.out_bias.const_data_ptr();
  sample.offsets = t.offsets.defined() ? t.offsets.const_data_ptr<int64_t>() : nullptr;
  sample.in_offsets = t.in_offsets.defined() ? t.in_offsets.const_data_ptr<int64_t>() : nullptr;
  sample.order = t.order.defined() ? t.order.const_data_ptr<int64_t>() : nullptr;
  sample.start = start;
  sample.stop = stop;
  sample.seed = static_cast<uint64_t>(seed);
  sample.first_index = first_index;
  sample.temperature = temperature;
  sample.given = t.given.defined() ? t.given.const_data_ptr() : nullptr;
  sample.known = t.known.defined() ? static_cast<const uint8_t*>(t.known.const_data_ptr()) : nullptr;
  sample.state = t.next.mutable_data_ptr();
  sample.values = t.values.mutable_data_ptr();
  sample.log_prob = t.log_prob.mutable_data_ptr();
  return t;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> armlp_sample(
    const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& block_starts, const at::Tensor& in_bias,
    const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
    const OptionalTensor& offsets, const OptionalTensor& in_offsets, const OptionalTensor& given,
    const OptionalTensor& known, std::string activation, std::string head, int64_t levels,
    const OptionalTensor& head_kinds, int64_t seed, int64_t first_index, int64_t start, int64_t stop,
    double temperature, std::string algorithm) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(AR_FAST_OP("armlp_sample"), "")
                             .typed<decltype(armlp_sample)>();
  return op.call(state, in_weight, block_starts, in_bias, out_weight, out_bias, order, offsets, in_offsets, given,
                 known, std::move(activation), std::move(head), levels, head_kinds, seed, first_index, start, stop,
                 temperature, std::move(algorithm));
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> armlp_sample_meta(
    const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& block_starts, const at::Tensor& in_bias,
    const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
    const OptionalTensor& offsets, const OptionalTensor& in_offsets, const OptionalTensor& given,
    const OptionalTensor& known, std::string activation, std::string head, int64_t levels,
    const OptionalTensor& head_kinds, int64_t /*seed*/, int64_t /*first_index*/, int64_t start, int64_t stop,
    double temperature, std::string algorithm) {
  parse_activation(armlp_name, activation);
  check_armlp_sample(state, in_weight, block_starts, in_bias, out_weight, out_bias, order, offsets, in_offsets, given,
                     known, parse_head(armlp_name, head, levels, head_kinds), head_kinds, start, stop, temperature,
                     algorithm);
  const c10::SymInt batch = state.sym_size(0);
  return {at::empty_symint({batch, stop - start}, state.options()),
          at::empty_symint({batch}, state.options().dtype(at::kDouble)),
          at::empty_symint(state.sym_sizes(), state.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) { m.impl("armlp_sample", armlp_sample_meta); }

}  // namespace ar_fast
