#include "armlp.h"

#include <utility>

#include "activation.h"

namespace ar_fast {

namespace {

void check_bias(const char* name, const at::Tensor& bias, const at::Tensor& in_weight) {
  const auto type = in_weight.scalar_type();
  TORCH_CHECK(bias.scalar_type() == type || bias.scalar_type() == compute_type(type), armlp_name, ": ", name,
              " must have the dtype of in_weight, ", dtype_name(type), ", or ", dtype_name(compute_type(type)),
              ", got ", dtype_name(bias.scalar_type()));
  check_same_device(armlp_name, name, bias, "in_weight", in_weight);
}

}  // namespace

Head check_armlp_sample(const ArmlpSampleArguments& a) {
  const char* op = armlp_name;
  const Head head = parse_head(op, a.head, a.levels, a.head_kinds);
  check_algorithm(op, a.algorithm, {"auto", "gather"});
  check_dim(op, "state", a.state, 2, "(B, D)");
  const c10::SymInt variables = a.state.sym_size(1);
  TORCH_CHECK(variables > 0, op, ": state must have at least one variable, got shape ", a.state.sym_sizes());
  check_dim(op, "in_weight", a.in_weight, 2, "(rows, H)");
  check_floating(op, "in_weight", a.in_weight);
  const c10::SymInt hidden = a.in_weight.sym_size(1);
  check_dtype(op, "state", a.state, compute_type(a.in_weight.scalar_type()));
  check_same_device(op, "state", a.state, "in_weight", a.in_weight);
  check_dim(op, "block_starts", a.block_starts, 1, "(blocks + 1)");
  check_size(op, "block_starts", a.block_starts, 0, (variables + armlp_block - 1) / armlp_block + 1,
             "entries, one more than the blocks of networks,");
  check_dtype(op, "block_starts", a.block_starts, at::kLong);
  check_same_device(op, "block_starts", a.block_starts, "in_weight", a.in_weight);
  TORCH_CHECK(a.in_bias.dim() == 2 || a.in_bias.dim() == 3, op, ": in_bias must have shape (D, H) or (B, D, H), got ",
              a.in_bias.sym_sizes());
  check_size(op, "in_bias", a.in_bias, a.in_bias.dim() - 2, variables, "networks, one per variable,");
  check_size(op, "in_bias", a.in_bias, a.in_bias.dim() - 1, hidden, "hidden units, as in_weight has,");
  if (a.in_bias.dim() == 3) check_size(op, "in_bias", a.in_bias, 0, a.state.sym_size(0), "rows, as state has,");
  check_bias("in_bias", a.in_bias, a.in_weight);
  check_dim(op, "out_weight", a.out_weight, 2, "(R_out, H)");
  check_size(op, "out_weight", a.out_weight, 1, hidden, "hidden units, as in_weight has,");
  check_same_dtype(op, "out_weight", a.out_weight, "in_weight", a.in_weight);
  check_same_device(op, "out_weight", a.out_weight, "in_weight", a.in_weight);
  const c10::SymInt out_rows = a.out_weight.sym_size(0);
  check_dim(op, "out_bias", a.out_bias, 1, "(R_out)");
  check_size(op, "out_bias", a.out_bias, 0, out_rows, "entries, one per row of out_weight,");
  check_bias("out_bias", a.out_bias, a.in_weight);
  if (a.offsets.has_value()) {
    check_dim(op, "offsets", *a.offsets, 1, "(D + 1)");
    check_size(op, "offsets", *a.offsets, 0, variables + 1, "entries, one more than the variables,");
    check_dtype(op, "offsets", *a.offsets, at::kLong);
    check_same_device(op, "offsets", *a.offsets, "in_weight", a.in_weight);
  } else {
    TORCH_CHECK(out_rows % variables == 0 && out_rows > 0, op, ": out_weight must have a multiple of D = ", variables,
                " rows unless offsets is given, got shape ", a.out_weight.sym_sizes());
  }
  check_head_rows(op, head, "out_weight", out_rows, variables, a.offsets);
  check_head_kinds(op, a.head_kinds, variables, "in_weight", a.in_weight);
  check_in_offsets(op, head, a.in_offsets, variables, "in_weight", a.in_weight);
  check_draws(draw_arguments(a), variables, compute_type(a.in_weight.scalar_type()), "in_weight", a.in_weight);
  return head;
}

ArmlpSampleTensors prepare_armlp_sample(const ArmlpSampleArguments& a) {
  const Head head = check_armlp_sample(a);
  const auto compute = compute_type(a.in_weight.scalar_type());
  ArmlpSampleTensors t;
  t.in_weight = a.in_weight.contiguous();
  t.block_starts = a.block_starts.contiguous();
  t.in_bias = a.in_bias.to(compute).contiguous();
  t.out_weight = a.out_weight.contiguous();
  t.out_bias = a.out_bias.to(compute).contiguous();
  t.offsets = contiguous_or_undefined(a.offsets);
  t.in_offsets = contiguous_or_undefined(a.in_offsets);
  t.next = a.state.clone(at::MemoryFormat::Contiguous);
  t.drawn = prepare_draws(draw_arguments(a), head, a.state.size(1));
  ArmlpSample& sample = t.sample;
  sample.draws = t.drawn.draws;
  sample.storage = storage_type(a.in_weight.scalar_type());
  sample.activation = parse_activation(armlp_name, a.activation);
  sample.hidden = a.in_weight.size(1);
  sample.out_rows = a.out_weight.size(0);
  sample.in_weight = t.in_weight.const_data_ptr();
  sample.block_starts = t.block_starts.const_data_ptr<int64_t>();
  sample.in_bias = t.in_bias.const_data_ptr();
  sample.in_bias_stride = a.in_bias.dim() == 3 ? sample.draws.variables * sample.hidden : 0;
  sample.out_weight = t.out_weight.const_data_ptr();
  sample.out_bias = t.out_bias.const_data_ptr();
  sample.offsets = pointer_or_null<int64_t>(t.offsets);
  sample.in_offsets = pointer_or_null<int64_t>(t.in_offsets);
  sample.state = t.next.mutable_data_ptr();
  return t;
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> armlp_sample_meta(const ArmlpSampleArguments& a) {
  parse_activation(armlp_name, a.activation);
  check_armlp_sample(a);
  return empty_samples(draw_arguments(a));
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) { implement<armlp_sample_meta>(m); }

}  // namespace ar_fast
