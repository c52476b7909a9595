#include "offset_nade.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <utility>

#include "activation.h"
#include "dense_layers.h"

namespace ar_fast {
namespace {

// The part of the structure that follows from the shapes.
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

Head check_offset_nade_sample(const OffsetNadeSampleArguments& a) {
  const char* op = offset_nade_name;
  check_algorithm(op, a.algorithm, {"auto", "pixels", "wavefront"});
  const Head head = parse_head(op, a.head, a.levels);
  const OffsetNadeSample sizes = sizes_of(a.grid, a.window);
  const int64_t variables = sizes.rows * sizes.columns * sizes.channels;
  check_dim(op, "in_weight", a.in_weight, 2, "(rows, H)");
  check_floating(op, "in_weight", a.in_weight);
  const auto type = a.in_weight.scalar_type(), compute = compute_type(type);
  const c10::SymInt hidden = a.in_weight.sym_size(1);
  check_dense_layers(op, a.weights, a.biases, a.out_weight, a.out_bias, a.in_weight, offset_nade_most_layers);
  TORCH_CHECK(a.in_bias.dim() == 1 || a.in_bias.dim() == 2, op, ": in_bias must have shape (H) or (B, H), got ",
              a.in_bias.sym_sizes());
  check_size(op, "in_bias", a.in_bias, a.in_bias.dim() - 1, hidden, "hidden units, as in_weight has,");
  TORCH_CHECK(a.in_bias.scalar_type() == type || a.in_bias.scalar_type() == compute, op,
              ": in_bias must have the dtype of in_weight, ", dtype_name(type), ", or ", dtype_name(compute), ", got ",
              dtype_name(a.in_bias.scalar_type()));
  check_same_device(op, "in_bias", a.in_bias, "in_weight", a.in_weight);

  const int64_t outputs = a.shared_output ? sizes.channels : variables;
  TORCH_CHECK(a.out_weight.sym_size(0) > 0 && a.out_weight.sym_size(0) % outputs == 0, op,
              ": out_weight must have K rows per ", a.shared_output ? "channel" : "variable", ", a multiple of ",
              outputs, ", got shape ", a.out_weight.sym_sizes());
  check_head_rows(op, head, "out_weight", a.out_weight.sym_size(0), outputs, std::nullopt);
  const int64_t inputs = sizes.taps() * sizes.channels + sizes.channels - 1;
  const c10::SymInt values = head.kind == HeadKind::categorical ? a.out_weight.sym_size(0) / outputs : c10::SymInt(1);
  check_size(op, "in_weight", a.in_weight, 0, inputs * values,
             "rows, one per tap, channel and category, and one per channel but the last,");
  check_dim(op, "state", a.state, 2, "(B, reach)");
  check_size(op, "state", a.state, 1, sizes.reach(), "values, (up columns + side) C + C - 1,");
  check_dtype(op, "state", a.state, compute);
  check_same_device(op, "state", a.state, "in_weight", a.in_weight);
  if (a.in_bias.dim() == 2) check_size(op, "in_bias", a.in_bias, 0, a.state.sym_size(0), "rows, as state has,");
  check_draws(draw_arguments(a), variables, compute, "in_weight", a.in_weight);
  return head;
}

OffsetNadeTensors prepare_offset_nade_sample(const OffsetNadeSampleArguments& a) {
  const Head head = check_offset_nade_sample(a);
  const auto compute = compute_type(a.in_weight.scalar_type());
  OffsetNadeTensors t;
  const auto keep = [&](const at::Tensor& tensor) {
    t.kept.push_back(tensor.contiguous());
    return t.kept.back().const_data_ptr();
  };
  t.history = at::cat({a.state, at::empty({a.state.size(0), a.stop - a.start}, a.state.options())}, 1);

  OffsetNadeSample& sample = t.sample = sizes_of(a.grid, a.window);
  const int64_t variables = sample.rows * sample.columns * sample.channels;
  const int64_t outputs = a.shared_output ? sample.channels : variables;
  t.drawn = prepare_draws(draw_arguments(a), head, variables);
  // Values are written where later ones can see them.
  t.drawn.draws.values = t.history.slice(1, sample.reach()).mutable_data_ptr();
  t.drawn.draws.values_stride = t.history.size(1);
  sample.draws = t.drawn.draws;
  sample.storage = storage_type(a.in_weight.scalar_type());
  sample.activation = parse_activation(offset_nade_name, a.activation);
  sample.gathers = head.kind == HeadKind::categorical;
  sample.hidden = a.in_weight.size(1);
  sample.parameters = a.out_weight.size(0) / outputs;
  sample.values_per_input = sample.gathers ? sample.parameters : 1;
  sample.shared_output = a.shared_output;
  sample.layers = static_cast<int64_t>(a.weights.size());
  for (size_t l = 0; l < a.weights.size(); ++l) {
    sample.layer[l] = {keep(a.weights[l].t()), keep(a.biases[l].to(compute)), a.weights[l].size(0)};
  }
  sample.in_weight = keep(a.in_weight);
  sample.in_bias = keep(a.in_bias.to(compute));
  sample.in_bias_stride = a.in_bias.dim() == 2 ? sample.hidden : 0;
  sample.out_weight = keep(a.out_weight);
  sample.out_bias = keep(a.out_bias.to(compute));
  return t;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> OffsetNadeTensors::result() const {
  const int64_t count = sample.draws.stop - sample.draws.start, reach = sample.reach();
  return {history.slice(1, reach).contiguous(), drawn.log_prob, history.slice(1, count).contiguous()};
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> offset_nade_sample_meta(const OffsetNadeSampleArguments& a) {
  parse_activation(offset_nade_name, a.activation);
  check_offset_nade_sample(a);
  return empty_samples(draw_arguments(a));
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) { implement<offset_nade_sample_meta>(m); }

}  // namespace ar_fast
