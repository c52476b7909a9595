#include "fvsbn.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "library.h"

namespace ar_fast {

namespace {

}  // namespace

void check_fvsbn_sample(const at::Tensor& state, const at::Tensor& weight, const OptionalTensor& order,
                        const OptionalTensor& offsets, const OptionalTensor& in_offsets, const OptionalTensor& given,
                        const OptionalTensor& known, int64_t variables, const Head& head,
                        const OptionalTensor& head_kinds, int64_t start, int64_t stop, double temperature,
                        const std::string& algorithm) {
  const char* op = fvsbn_name;
  check_algorithm(op, algorithm, {"auto", "push"});
  TORCH_CHECK(variables > 0, op, ": variables must be positive, got ", variables);
  check_dim(op, "weight", weight, 2, "(R_in, R_out)");
  check_floating(op, "weight", weight);
  const c10::SymInt in_rows = weight.sym_size(0), out_rows = weight.sym_size(1), count = variables;
  if (offsets.has_value()) {
    check_dim(op, "offsets", *offsets, 1, "(D + 1)");
    check_size(op, "offsets", *offsets, 0, count + 1, "entries, one more than the variables,");
    check_dtype(op, "offsets", *offsets, at::kLong);
    check_same_device(op, "offsets", *offsets, "weight", weight);
  } else {
    TORCH_CHECK(out_rows % count == 0 && out_rows > 0, op, ": weight must have a multiple of D = ", variables,
                " columns unless offsets is given, got shape ", weight.sym_sizes());
  }
  check_head_rows(op, head, "weight", out_rows, count, offsets);
  check_head_kinds(op, head_kinds, count, "weight", weight);
  check_in_offsets(op, head, in_offsets, count, "weight", weight);
  const bool gathers = head.kind == HeadKind::categorical;
  TORCH_CHECK(in_offsets.has_value() || in_rows == (gathers ? out_rows : count), op, ": weight must have one row per ",
              gathers ? "category, as many as columns, " : "variable, ", gathers ? out_rows : count, ", got shape ",
              weight.sym_sizes());
  check_dim(op, "state", state, 2, "(B, R_out)");
  check_size(op, "state", state, 1, out_rows, "parameters, as weight has columns,");
  check_dtype(op, "state", state, compute_type(weight.scalar_type()));
  check_same_device(op, "state", state, "weight", weight);
  if (order.has_value()) {
    check_dim(op, "order", *order, 1, "(D)");
    check_size(op, "order", *order, 0, count, "entries, one per variable,");
    check_dtype(op, "order", *order, at::kLong);
    check_same_device(op, "order", *order, "weight", weight);
  }
  check_sample_arguments(op, state, count, compute_type(weight.scalar_type()), given, known, start, stop, temperature);
}

FvsbnSampleTensors prepare_fvsbn_sample(const at::Tensor& state, const at::Tensor& weight, const OptionalTensor& order,
                                        const OptionalTensor& offsets, const OptionalTensor& in_offsets,
                                        const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
                                        const std::string& head, int64_t levels, const OptionalTensor& head_kinds,
                                        int64_t seed, int64_t first_index, int64_t start, int64_t stop,
                                        double temperature, const std::string& algorithm) {
  const Head parsed = parse_head(fvsbn_name, head, levels, head_kinds);
  check_fvsbn_sample(state, weight, order, offsets, in_offsets, given, known, variables, parsed, head_kinds, start,
                     stop, temperature, algorithm);
  FvsbnSampleTensors t;
  t.weight = weight.contiguous();
  t.order = contiguous_or_undefined(order);
  t.offsets = contiguous_or_undefined(offsets);
  t.in_offsets = contiguous_or_undefined(in_offsets);
  t.given = contiguous_or_undefined(given);
  t.known = contiguous_or_undefined(known);
  t.next = state.clone(at::MemoryFormat::Contiguous);
  t.values = at::empty({state.size(0), stop - start}, state.options());
  t.log_prob = at::zeros({state.size(0)}, state.options().dtype(at::kDouble));
  t.sample.storage = storage_type(weight.scalar_type());
  t.sample.head = with_kinds(parsed, head_kinds, t.head_kinds);
  t.sample.batch = state.size(0);
  t.sample.variables = variables;
  t.sample.out_rows = weight.size(1);
  t.sample.weight = t.weight.const_data_ptr();
  t.sample.offsets = t.offsets.defined() ? t.offsets.const_data_ptr<int64_t>() : nullptr;
  t.sample.in_offsets = t.in_offsets.defined() ? t.in_offsets.const_data_ptr<int64_t>() : nullptr;
  t.sample.order = t.order.defined() ? t.order.const_data_ptr<int64_t>() : nullptr;
  t.sample.start = start;
  t.sample.stop = stop;
  t.sample.seed = static_cast<uint64_t>(seed);
  t.sample.first_index = first_index;
  t.sample.temperature = temperature;
  t.sample.given = t.given.defined() ? t.given.const_data_ptr() : nullptr;
  t.sample.known = t.known.defined() ? static_cast<const uint8_t*>(t.known.const_data_ptr()) : nullptr;
  t.sample.state = t.next.mutable_data_ptr();
  t.sample.values = t.values.mutable_data_ptr();
  t.sample.log_prob = t.log_prob.mutable_data_ptr();
  return t;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fvsbn_sample(
    const at::Tensor& state, const at::Tensor& weight, const OptionalTensor& order, const OptionalTensor& offsets,
    const OptionalTensor& in_offsets, const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
    std::string head, int64_t levels, const OptionalTensor& head_kinds, int64_t seed, int64_t first_index,
    int64_t start, int64_t stop, double temperature, std::string algorithm) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(AR_FAST_OP("fvsbn_sample"), "")
                             .typed<decltype(fvsbn_sample)>();
  return op.call(state, weight, order, offsets, in_offsets, given, known, variables, std::move(head), levels,
                 head_kinds, seed, first_index, start, stop, temperature, std::move(algorithm));
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> fvsbn_sample_meta(
    const at::Tensor& state, const at::Tensor& weight, const OptionalTensor& order, const OptionalTensor& offsets,
    const OptionalTensor& in_offsets, const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
    std::string head, int64_t levels, const OptionalTensor& head_kinds, int64_t /*seed*/, int64_t /*first_index*/,
    int64_t start, int64_t stop, double temperature, std::string algorithm) {
  check_fvsbn_sample(state, weight, order, offsets, in_offsets, given, known, variables,
                     parse_head(fvsbn_name, head, levels, head_kinds), head_kinds, start, stop, temperature, algorithm);
  const c10::SymInt batch = state.sym_size(0);
  return {at::empty_symint({batch, stop - start}, state.options()),
          at::empty_symint({batch}, state.options().dtype(at::kDouble)),
          at::empty_symint(state.sym_sizes(), state.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) { m.impl("fvsbn_sample", fvsbn_sample_meta); }

}  // namespace ar_fast
