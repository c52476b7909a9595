#include "offset_nade.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "library.h"
#include "nade.h"

namespace ar_fast {
namespace {

// The part of the structure that the shapes say.
OffsetNadeSample sizes_of(at::IntArrayRef grid, at::IntArrayRef window) {
  TORCH_CHECK(grid.size() == 3 && grid[0] > 0 && grid[1] > 0 && grid[2] > 0, offset_nade_name,
              ": grid must be (rows, columns, channels), all positive, got ", grid);
  TORCH_CHECK(window.size() == 2 && window[0] >= 0 && window[1] >= 0 && window[0] + window[1] > 0, offset_nade_name,
              ": window must be (rows above, columns to a side), not negative and not both 0, got ", window);
  OffsetNadeSample sample{};
  sample.rows = grid[0];
  sample.columns = grid[1];
  sample.channels = grid[2];
  sample.up = window[0];
  sample.side = window[1];
  return sample;
}

}  // namespace

void check_offset_nade_sample(const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& in_bias,
                              const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                              const OptionalTensor& given, const OptionalTensor& known, at::IntArrayRef grid,
                              at::IntArrayRef window, bool shared_output, const Head& head, int64_t start, int64_t stop,
                              double temperature) {
  const char* op = offset_nade_name;
  const OffsetNadeSample sizes = sizes_of(grid, window);
  const int64_t variables = sizes.rows * sizes.columns * sizes.channels;
  check_dim(op, "in_weight", in_weight, 2, "(rows, H)");
  check_floating(op, "in_weight", in_weight);
  const auto type = in_weight.scalar_type(), compute = compute_type(type);
  const c10::SymInt hidden = in_weight.sym_size(1);
  check_dim(op, "out_weight", out_weight, 2, "(rows, H)");
  check_size(op, "out_weight", out_weight, 1, hidden, "hidden units, as in_weight has,");
  check_same_dtype(op, "out_weight", out_weight, "in_weight", in_weight);
  check_same_device(op, "out_weight", out_weight, "in_weight", in_weight);
  check_dim(op, "out_bias", out_bias, 1, "(rows of out_weight)");
  check_size(op, "out_bias", out_bias, 0, out_weight.sym_size(0), "entries, one per row of out_weight,");
  check_same_dtype(op, "out_bias", out_bias, "in_weight", in_weight);
  check_same_device(op, "out_bias", out_bias, "in_weight", in_weight);
  TORCH_CHECK(in_bias.dim() == 1 || in_bias.dim() == 2, op, ": in_bias must have shape (H) or (B, H), got ",
              in_bias.sym_sizes());
  check_size(op, "in_bias", in_bias, in_bias.dim() - 1, hidden, "hidden units, as in_weight has,");
  TORCH_CHECK(in_bias.scalar_type() == type || in_bias.scalar_type() == compute, op,
              ": in_bias must have the dtype of in_weight, ", dtype_name(type), ", or ", dtype_name(compute), ", got ",
              dtype_name(in_bias.scalar_type()));
  check_same_device(op, "in_bias", in_bias, "in_weight", in_weight);

  const int64_t outputs = shared_output ? sizes.channels : variables;
  TORCH_CHECK(out_weight.sym_size(0) > 0 && out_weight.sym_size(0) % outputs == 0, op,
              ": out_weight must have K rows per ", shared_output ? "channel" : "variable", ", a multiple of ", outputs,
              ", got shape ", out_weight.sym_sizes());
  check_head_rows(op, head, "out_weight", out_weight.sym_size(0), outputs, std::nullopt);
  const int64_t inputs = sizes.taps() * sizes.channels + sizes.channels - 1;
  const c10::SymInt values = head.kind == HeadKind::categorical ? out_weight.sym_size(0) / outputs : c10::SymInt(1);
  check_size(op, "in_weight", in_weight, 0, inputs * values,
             "rows, one per tap, channel and category, and one per channel but the last,");
  check_dim(op, "state", state, 2, "(B, reach)");
  check_size(op, "state", state, 1, sizes.reach(), "values, (up columns + side) C + C - 1,");
  check_dtype(op, "state", state, compute);
  check_same_device(op, "state", state, "in_weight", in_weight);
  if (in_bias.dim() == 2) check_size(op, "in_bias", in_bias, 0, state.sym_size(0), "rows, as state has,");
  if (order.has_value()) {
    check_dim(op, "order", *order, 1, "(D)");
    check_size(op, "order", *order, 0, variables, "entries, one per variable,");
    check_dtype(op, "order", *order, at::kLong);
    check_same_device(op, "order", *order, "in_weight", in_weight);
  }
  check_sample_arguments(op, state, variables, compute, given, known, start, stop, temperature);
}

OffsetNadeTensors prepare_offset_nade_sample(
    const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& in_bias, const at::Tensor& out_weight,
    const at::Tensor& out_bias, const OptionalTensor& order, const OptionalTensor& given, const OptionalTensor& known,
    at::IntArrayRef grid, at::IntArrayRef window, bool shared_output, const std::string& activation,
    const std::string& head, int64_t levels, int64_t seed, int64_t first_index, int64_t start, int64_t stop,
    double temperature) {
  const Head parsed = parse_head(offset_nade_name, head, levels);
  check_offset_nade_sample(state, in_weight, in_bias, out_weight, out_bias, order, given, known, grid, window,
                           shared_output, parsed, start, stop, temperature);
  const auto compute = compute_type(in_weight.scalar_type());
  const auto contiguous = [](const OptionalTensor& tensor) {
    return tensor.has_value() ? tensor->contiguous() : at::Tensor();
  };
  const auto pointer = [](const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; };
  OffsetNadeTensors t;
  t.in_weight = in_weight.contiguous();
  t.in_bias = in_bias.to(compute).contiguous();
  t.out_weight = out_weight.contiguous();
  t.out_bias = out_bias.to(compute).contiguous();
  t.order = contiguous(order);
  t.given = contiguous(given);
  t.known = contiguous(known);
  t.history = at::cat({state, at::empty({state.size(0), stop - start}, state.options())}, 1);
  t.log_prob = at::zeros({state.size(0)}, state.options().dtype(at::kDouble));

  OffsetNadeSample& sample = t.sample = sizes_of(grid, window);
  const int64_t outputs = shared_output ? sample.channels : sample.rows * sample.columns * sample.channels;
  sample.storage = storage_type(in_weight.scalar_type());
  sample.activation = parse_activation(offset_nade_name, activation);
  sample.head = parsed;
  sample.gathers = parsed.kind == HeadKind::categorical;
  sample.hidden = in_weight.size(1);
  sample.parameters = out_weight.size(0) / outputs;
  sample.values_per_input = sample.gathers ? sample.parameters : 1;
  sample.shared_output = shared_output;
  sample.in_weight = t.in_weight.const_data_ptr();
  sample.in_bias = t.in_bias.const_data_ptr();
  sample.in_bias_stride = in_bias.dim() == 2 ? sample.hidden : 0;
  sample.out_weight = t.out_weight.const_data_ptr();
  sample.out_bias = t.out_bias.const_data_ptr();
  sample.order = static_cast<const int64_t*>(pointer(t.order));
  sample.batch = state.size(0);
  sample.start = start;
  sample.stop = stop;
  sample.seed = static_cast<uint64_t>(seed);
  sample.first_index = first_index;
  sample.temperature = temperature;
  sample.given = pointer(t.given);
  sample.known = static_cast<const uint8_t*>(pointer(t.known));
  sample.history = t.history.mutable_data_ptr();
  sample.log_prob = t.log_prob.mutable_data_ptr();
  return t;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> OffsetNadeTensors::result() const {
  const int64_t count = sample.stop - sample.start, reach = sample.reach();
  return {history.slice(1, reach).contiguous(), log_prob, history.slice(1, count).contiguous()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> offset_nade_sample(
    const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& in_bias, const at::Tensor& out_weight,
    const at::Tensor& out_bias, const OptionalTensor& order, const OptionalTensor& given, const OptionalTensor& known,
    at::IntArrayRef grid, at::IntArrayRef window, bool shared_output, std::string activation, std::string head,
    int64_t levels, int64_t seed, int64_t first_index, int64_t start, int64_t stop, double temperature,
    std::string algorithm) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(AR_FAST_OP("offset_nade_sample"), "")
                             .typed<decltype(offset_nade_sample)>();
  return op.call(state, in_weight, in_bias, out_weight, out_bias, order, given, known, grid, window, shared_output,
                 std::move(activation), std::move(head), levels, seed, first_index, start, stop, temperature,
                 std::move(algorithm));
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> offset_nade_sample_meta(
    const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& in_bias, const at::Tensor& out_weight,
    const at::Tensor& out_bias, const OptionalTensor& order, const OptionalTensor& given, const OptionalTensor& known,
    at::IntArrayRef grid, at::IntArrayRef window, bool shared_output, std::string activation, std::string head,
    int64_t levels, int64_t /*seed*/, int64_t /*first_index*/, int64_t start, int64_t stop, double temperature,
    std::string /*algorithm*/) {
  check_offset_nade_sample(state, in_weight, in_bias, out_weight, out_bias, order, given, known, grid, window,
                           shared_output, parse_head(offset_nade_name, head, levels), start, stop, temperature);
  parse_activation(offset_nade_name, activation);
  return {at::empty_symint({state.sym_size(0), stop - start}, state.options()),
          at::empty_symint({state.sym_size(0)}, state.options().dtype(at::kDouble)),
          at::empty_symint(state.sym_sizes(), state.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) { m.impl("offset_nade_sample", offset_nade_sample_meta); }

}  // namespace ar_fast
