#include "fvsbn.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <utility>


namespace ar_fast {

Head check_fvsbn_sample(const FvsbnSampleArguments& a) {
  const char* op = fvsbn_name;
  const Head head = parse_head(op, a.head, a.levels, a.head_kinds);
  check_algorithm(op, a.algorithm, {"auto", "push"});
  TORCH_CHECK(a.variables > 0, op, ": variables must be positive, got ", a.variables);
  check_dim(op, "weight", a.weight, 2, "(R_in, R_out)");
  check_floating(op, "weight", a.weight);
  const c10::SymInt in_rows = a.weight.sym_size(0), out_rows = a.weight.sym_size(1), count = a.variables;
  if (a.offsets.has_value()) {
    check_dim(op, "offsets", *a.offsets, 1, "(D + 1)");
    check_size(op, "offsets", *a.offsets, 0, count + 1, "entries, one more than the variables,");
    check_dtype(op, "offsets", *a.offsets, at::kLong);
    check_same_device(op, "offsets", *a.offsets, "weight", a.weight);
  } else {
    TORCH_CHECK(out_rows % count == 0 && out_rows > 0, op, ": weight must have a multiple of D = ", a.variables,
                " columns unless offsets is given, got shape ", a.weight.sym_sizes());
  }
  check_head_rows(op, head, "weight", out_rows, count, a.offsets);
  check_head_kinds(op, a.head_kinds, count, "weight", a.weight);
  check_in_offsets(op, head, a.in_offsets, count, "weight", a.weight);
  const bool gathers = head.kind == HeadKind::categorical;
  TORCH_CHECK(a.in_offsets.has_value() || in_rows == (gathers ? out_rows : count), op,
              ": weight must have one row per ", gathers ? "category, as many as columns, " : "variable, ",
              gathers ? out_rows : count, ", got shape ",
              a.weight.sym_sizes());
  check_dim(op, "state", a.state, 2, "(B, R_out)");
  check_size(op, "state", a.state, 1, out_rows, "parameters, as weight has columns,");
  check_dtype(op, "state", a.state, compute_type(a.weight.scalar_type()));
  check_same_device(op, "state", a.state, "weight", a.weight);
  if (a.order.has_value()) {
    check_dim(op, "order", *a.order, 1, "(D)");
    check_size(op, "order", *a.order, 0, count, "entries, one per variable,");
    check_dtype(op, "order", *a.order, at::kLong);
    check_same_device(op, "order", *a.order, "weight", a.weight);
  }
  check_sample_arguments(a, count, compute_type(a.weight.scalar_type()));
  return head;
}

FvsbnSampleTensors prepare_fvsbn_sample(const FvsbnSampleArguments& a) {
  const Head head = check_fvsbn_sample(a);
  FvsbnSampleTensors t;
  t.weight = a.weight.contiguous();
  t.order = contiguous_or_undefined(a.order);
  t.offsets = contiguous_or_undefined(a.offsets);
  t.in_offsets = contiguous_or_undefined(a.in_offsets);
  t.given = contiguous_or_undefined(a.given);
  t.known = contiguous_or_undefined(a.known);
  t.next = a.state.clone(at::MemoryFormat::Contiguous);
  t.values = at::empty({a.state.size(0), a.stop - a.start}, a.state.options());
  t.log_prob = at::zeros({a.state.size(0)}, a.state.options().dtype(at::kDouble));
  t.sample.storage = storage_type(a.weight.scalar_type());
  t.sample.head = with_kinds(head, a.head_kinds, t.head_kinds);
  set_draws(t.sample, a);
  t.sample.variables = a.variables;
  t.sample.out_rows = a.weight.size(1);
  t.sample.weight = t.weight.const_data_ptr();
  t.sample.offsets = t.offsets.defined() ? t.offsets.const_data_ptr<int64_t>() : nullptr;
  t.sample.in_offsets = t.in_offsets.defined() ? t.in_offsets.const_data_ptr<int64_t>() : nullptr;
  t.sample.order = t.order.defined() ? t.order.const_data_ptr<int64_t>() : nullptr;
  t.sample.given = t.given.defined() ? t.given.const_data_ptr() : nullptr;
  t.sample.known = t.known.defined() ? static_cast<const uint8_t*>(t.known.const_data_ptr()) : nullptr;
  t.sample.state = t.next.mutable_data_ptr();
  t.sample.values = t.values.mutable_data_ptr();
  t.sample.log_prob = t.log_prob.mutable_data_ptr();
  return t;
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> fvsbn_sample_meta(const FvsbnSampleArguments& a) {
  check_fvsbn_sample(a);
  return empty_samples(a);
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) { implement<fvsbn_sample_meta>(m); }

}  // namespace ar_fast
