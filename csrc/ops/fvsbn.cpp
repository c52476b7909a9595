#include "fvsbn.h"

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
  check_draws(draw_arguments(a), count, compute_type(a.weight.scalar_type()), "weight", a.weight);
  return head;
}

FvsbnSampleTensors prepare_fvsbn_sample(const FvsbnSampleArguments& a) {
  const Head head = check_fvsbn_sample(a);
  FvsbnSampleTensors t;
  t.weight = a.weight.contiguous();
  t.offsets = contiguous_or_undefined(a.offsets);
  t.in_offsets = contiguous_or_undefined(a.in_offsets);
  t.next = a.state.clone(at::MemoryFormat::Contiguous);
  t.drawn = prepare_draws(draw_arguments(a), head, a.variables);
  // The op's head_kinds are by place, the kernel's by position.
  if (a.head_kinds.has_value()) {
    t.head_kinds = a.head_kinds->flip(0);
    t.drawn.draws.head.kinds = t.head_kinds.const_data_ptr<int64_t>();
  }
  t.sample.draws = t.drawn.draws;
  t.sample.storage = storage_type(a.weight.scalar_type());
  t.sample.out_rows = a.weight.size(1);
  t.sample.weight = t.weight.const_data_ptr();
  t.sample.offsets = pointer_or_null<int64_t>(t.offsets);
  t.sample.in_offsets = pointer_or_null<int64_t>(t.in_offsets);
  t.sample.state = t.next.mutable_data_ptr();
  return t;
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> fvsbn_sample_meta(const FvsbnSampleArguments& a) {
  check_fvsbn_sample(a);
  return empty_samples(draw_arguments(a));
}

#if !defined(AR_FAST_EMULATE_CUDA)
std::tuple<at::Tensor, at::Tensor, at::Tensor> fvsbn_sample_cpu(const FvsbnSampleArguments& a) {
  check_fvsbn_sample(a);
  TORCH_CHECK(false, fvsbn_name,
              ": tensors must be on CUDA, got them on the CPU, where masked_mlp_sample draws the same with "
              "by_input=True");
}
#endif

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) { implement<fvsbn_sample_meta>(m); }
#if !defined(AR_FAST_EMULATE_CUDA)
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<fvsbn_sample_cpu>(m); }
#endif

}  // namespace ar_fast
