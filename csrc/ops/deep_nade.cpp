#include "deep_nade.h"

#include "activation.h"
#include "dense_layers.h"
#include "nade.h"

namespace ar_fast {
Head check_deep_nade_sample(const DeepNadeSampleArguments& a) {
  const char* op = deep_nade_name;
  const Head head = parse_head(op, a.head, a.levels, a.head_kinds);
  TORCH_CHECK(a.variables > 0, op, ": variables must be positive, got ", a.variables);
  const c10::SymInt variables = a.variables;
  check_dim(op, "in_weight", a.in_weight, 2, "(R_in, H)");
  check_floating(op, "in_weight", a.in_weight);
  const c10::SymInt hidden = a.in_weight.sym_size(1);
  const auto compute = compute_type(a.in_weight.scalar_type());
  check_dim(op, "state", a.state, 2, "(B, H)");
  check_size(op, "state", a.state, 1, hidden, "hidden units, as in_weight has,");
  check_dtype(op, "state", a.state, compute);
  check_same_device(op, "state", a.state, "in_weight", a.in_weight);
  check_matrix(op, "mask_weight", a.mask_weight, hidden, a.in_weight);
  check_size(op, "mask_weight", a.mask_weight, 0, variables, "rows, one per variable,");
  check_dense_layers(op, a.weights, a.biases, a.out_weight, a.out_bias, a.in_weight, deep_nade_most_layers);
  check_offsets(op, "in_offsets", a.in_offsets, variables, a.in_weight);
  check_offsets(op, "out_offsets", a.out_offsets, variables, a.in_weight);
  check_rows(op, "in_weight", a.in_weight, "in_offsets", a.in_offsets, variables);
  check_rows(op, "out_weight", a.out_weight, "out_offsets", a.out_offsets, variables);
  check_head_rows(op, head, "out_weight", a.out_weight.sym_size(0), variables, a.out_offsets);
  check_head_kinds(op, a.head_kinds, variables, "in_weight", a.in_weight);
  const bool one_row = !a.in_offsets.has_value() && a.in_weight.sym_size(0) == variables;
  TORCH_CHECK(head.kind == HeadKind::categorical || one_row ||
                  (head.kind == HeadKind::per_variable && a.in_offsets.has_value()),
              op, ": in_weight must have one row per variable, ", a.variables,
              ", except for a categorical head or a per_variable one with in_offsets, got shape ",
              a.in_weight.sym_sizes());
  TORCH_CHECK(head.kind != HeadKind::categorical || a.in_offsets.has_value() == a.out_offsets.has_value(), op,
              ": in_offsets must come with out_offsets for a categorical head, which has as many rows in both weights, "
              "got only ", a.in_offsets.has_value() ? "in_offsets" : "out_offsets");
  TORCH_CHECK(head.kind != HeadKind::categorical || a.in_weight.sym_size(0) == a.out_weight.sym_size(0), op,
              ": in_weight and out_weight must have as many rows for a categorical head, got ",
              a.in_weight.sym_size(0), " and ", a.out_weight.sym_size(0));
  check_draws(draw_arguments(a), variables, compute, "in_weight", a.in_weight);
  return head;
}

DeepNadeTensors prepare_deep_nade_sample(const DeepNadeSampleArguments& a) {
  const Head head = check_deep_nade_sample(a);
  const auto compute = compute_type(a.in_weight.scalar_type());
  DeepNadeTensors t;
  DeepNadeSample& sample = t.sample;
  const auto keep = [&](const at::Tensor& tensor) {
    t.kept.push_back(tensor.contiguous());
    return t.kept.back().const_data_ptr();
  };
  const auto keep_offsets = [&](const OptionalTensor& offsets) {
    return offsets.has_value() ? static_cast<const int64_t*>(keep(*offsets)) : nullptr;
  };
  t.drawn = prepare_draws(draw_arguments(a), head, a.variables);
  t.drawn.draws.kinds_by_variable = true;
  sample.draws = t.drawn.draws;
  sample.storage = storage_type(a.in_weight.scalar_type());
  sample.activation = parse_activation(deep_nade_name, a.activation);
  sample.gathers = head.kind == HeadKind::categorical;
  sample.hidden = a.in_weight.size(1);
  sample.in_rows = a.in_weight.size(0);
  sample.out_rows = a.out_weight.size(0);
  sample.most_parameters = a.out_offsets.has_value() ? sample.out_rows : sample.out_rows / a.variables;
  sample.layers = static_cast<int64_t>(a.weights.size());
  for (size_t l = 0; l < a.weights.size(); ++l) {
    sample.layer[l] = {keep(a.weights[l]), keep(a.biases[l].to(compute)), a.weights[l].size(0)};
  }
  sample.in_weight = keep(a.in_weight);
  sample.mask_weight = keep(a.mask_weight);
  sample.out_weight = keep(a.out_weight);
  sample.out_bias = keep(a.out_bias.to(compute));
  sample.in_offsets = keep_offsets(a.in_offsets);
  sample.out_offsets = keep_offsets(a.out_offsets);
  t.next = a.state.clone(at::MemoryFormat::Contiguous);
  sample.state = t.next.mutable_data_ptr();
  return t;
}

namespace {

SampleResult deep_nade_sample_meta(const DeepNadeSampleArguments& a) {
  parse_activation(deep_nade_name, a.activation);
  check_deep_nade_sample(a);
  return empty_samples(draw_arguments(a));
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) { implement<deep_nade_sample_meta>(m); }

}  // namespace ar_fast
