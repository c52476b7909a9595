#include "masked_mlp.h"

#include <utility>

#include "activation.h"
#include "transforms.h"

namespace ar_fast {
namespace {

std::string element(const char* list, size_t index) { return std::string(list) + "[" + std::to_string(index) + "]"; }

constexpr size_t step_numbers = 4;

}  // namespace

std::vector<MaskedMlpStep> parse_program(const char* op, at::IntArrayRef program, bool with_context) {
  TORCH_CHECK(!program.empty() && program.size() % step_numbers == 0 &&
                  program.size() / step_numbers <= masked_mlp_max_layers + 1,
              op, ": program must have 4 numbers for each of 1 to ", masked_mlp_max_layers + 1, " layers, got ",
              program.size(), " numbers");
  std::vector<MaskedMlpStep> steps;
  for (size_t i = 0; i < program.size(); i += step_numbers) {
    const auto layer = static_cast<int64_t>(i / step_numbers);
    for (size_t j = 0; j < 3; ++j) {
      const bool context = with_context && j < masked_mlp_max_terms && program[i + j] == masked_mlp_context;
      TORCH_CHECK(context || (program[i + j] >= -1 && program[i + j] <= layer), op, ": program[", i + j,
                  "] must be -1 or a value before layer ", layer, ", 0 ... ", layer,
                  with_context ? ", or -2 for the context in a term" : "", ", got ", program[i + j]);
    }
    TORCH_CHECK(program[i + 3] == 0 || program[i + 3] == 1, op, ": program[", i + 3, "] must be 0 or 1, got ",
                program[i + 3]);
    TORCH_CHECK(program[i] != -1 || (program[i + 1] == -1 && program[i + 2] >= 0 && layer > 0), op, ": layer ", layer,
                " of program must have a first term", layer > 0 ? ", or no term and a value added" : "", ", got [",
                program[i], ", ", program[i + 1], ", ", program[i + 2], "]");
    steps.push_back({{program[i], program[i + 1]}, program[i + 2], program[i + 3] == 1});
  }
  return steps;
}

namespace {

Head parse_head_or_transform(const MaskedMlpSampleArguments& a) {
  const char* op = masked_mlp_name;
  if (parse_transform(op, a.head, a.constants).kind == TransformKind::none) {
    return parse_head(op, a.head, a.levels, a.head_kinds);
  }
  TORCH_CHECK(a.levels == 0 && !a.head_kinds.has_value(), op,
              ": levels must be 0 and head_kinds must not be given for a transform, got ", a.levels, " and ",
              a.head_kinds.has_value() ? "some" : "none");
  return {HeadKind::transform, 0};
}

// The arguments that all samplers share.
DrawArguments shared_arguments(const MaskedMlpSampleArguments& a, const Head& head) {
  DrawArguments shared = draw_arguments(a);
  shared.transforms = head.kind == HeadKind::transform;
  return shared;
}

bool no_bias(const at::Tensor& bias) { return bias.dim() == 1 && bias.sym_size(0) == 0; }

}  // namespace

Head check_masked_mlp_sample(const MaskedMlpSampleArguments& a) {
  const char* op = masked_mlp_name;
  check_algorithm(op, a.algorithm, {"auto", "lanes", "push"});
  TORCH_CHECK(a.algorithm == "auto" || (a.algorithm == "push") == a.by_input, op,
              ": algorithm must be 'push' for a weight by input and 'lanes' for any other, or 'auto', got '",
              a.algorithm, "' for by_input = ", a.by_input ? "True" : "False");
  const Head head = parse_head_or_transform(a);
  const std::vector<MaskedMlpStep> steps = parse_program(op, a.program);
  size_t terms = 0;
  for (const MaskedMlpStep& step : steps) terms += static_cast<size_t>(step.terms());
  TORCH_CHECK(a.weights.size() == terms, op, ": weights must hold one tensor per term of program, ", terms, ", got ",
              a.weights.size());
  if (a.by_input) {
    TORCH_CHECK(a.program == at::IntArrayRef({0, -1, -1, 0}), op,
                ": by_input needs a program of one layer, [0, -1, -1, 0], got ", a.program);
    TORCH_CHECK(a.extents.empty(), op, ": extents must be empty for a weight by input, got ", a.extents.size(),
                " tensors");
  } else {
    TORCH_CHECK(a.extents.size() == terms, op, ": extents must hold as many tensors as weights, ", terms, ", got ",
                a.extents.size());
  }
  TORCH_CHECK(a.biases.size() == steps.size(), op, ": biases must hold one tensor per layer, ", steps.size(), ", got ",
              a.biases.size());
  TORCH_CHECK(a.unit_ends.size() + 1 == steps.size(), op, ": unit_ends must hold one tensor per layer but the last, ",
              steps.size() - 1, ", got ", a.unit_ends.size());
  for (size_t t = 0; t < terms; ++t) {
    check_dim(op, element("weights", t).c_str(), a.weights[t], 2, a.by_input ? "(R_in, R_out)" : "(units, inputs)");
  }
  const at::Tensor& first = a.weights[0];
  check_floating(op, "weights[0]", first);
  const auto type = first.scalar_type(), compute = compute_type(type);
  TORCH_CHECK(a.variables > 0, op, ": variables must be positive, got ", a.variables);
  check_dim(op, "state", a.state, 2, "(B, R_in + units of all layers but the last)");
  // Which dimension of a weight is which.
  const int64_t inputs = a.by_input ? 0 : 1, outputs = 1 - inputs;
  const c10::SymInt in_rows = first.sym_size(inputs);
  // The widths of the values: the columns, then each layer.
  std::vector<c10::SymInt> widths{in_rows};
  c10::SymInt features = 0;
  for (size_t l = 0, t = 0; l < steps.size(); t += static_cast<size_t>(steps[l++].terms())) {
    features = features + widths[l];
    widths.push_back(steps[l].terms() > 0 ? a.weights[t].sym_size(outputs)
                                          : widths[static_cast<size_t>(steps[l].add)]);
  }
  const c10::SymInt out_rows = widths.back();
  for (const auto& [name, offsets, rows, of] :
       {std::tuple{"in_offsets", a.in_offsets, in_rows, "columns of weights[0]"},
        std::tuple{"out_offsets", a.out_offsets, out_rows, "units of the last layer"}}) {
    if (offsets.has_value()) {
      check_dim(op, name, *offsets, 1, "(D + 1)");
      check_size(op, name, *offsets, 0, a.variables + 1, "entries, one more than the variables,");
      check_dtype(op, name, *offsets, at::kLong);
      check_same_device(op, name, *offsets, "weights[0]", first);
    } else {
      TORCH_CHECK(rows % a.variables == 0 && rows > 0, op, ": ", of, " must be a multiple of D = ", a.variables,
                  " unless ", name, " is given, got ", rows);
    }
  }
  if (head.kind == HeadKind::transform) {
    TORCH_CHECK(!a.out_offsets.has_value(), op, ": out_offsets must not be given for a transform");
    check_transform_rows(op, parse_transform(op, a.head, a.constants), "the last layer", out_rows, a.variables);
  } else {
    check_head_rows(op, head, "the last layer", out_rows, a.variables, a.out_offsets);
  }
  check_head_kinds(op, a.head_kinds, a.variables, "weights[0]", first);
  TORCH_CHECK(head.kind == HeadKind::categorical || head.kind == HeadKind::per_variable ||
                  (!a.in_offsets.has_value() && in_rows == a.variables),
              op, ": weights[0] must have one column per variable, ", a.variables,
              ", except for a categorical or per_variable head, got shape ", first.sym_sizes());
  size_t t = 0;
  for (size_t l = 0; l < steps.size(); ++l) {
    const std::string bias = element("biases", l);
    const c10::SymInt& units = widths[l + 1];
    for (int64_t k = 0; k < steps[l].terms(); ++k, ++t) {
      const std::string weight = element("weights", t), extent = element("extents", t);
      check_same_dtype(op, weight.c_str(), a.weights[t], "weights[0]", first);
      check_same_device(op, weight.c_str(), a.weights[t], "weights[0]", first);
      if (a.by_input) continue;
      check_size(op, weight.c_str(), a.weights[t], 0, units, "rows, one per unit of its layer,");
      check_size(op, weight.c_str(), a.weights[t], 1, widths[static_cast<size_t>(steps[l].sources[k])],
                 "columns, one per unit of the value it reads,");
      check_dim(op, extent.c_str(), a.extents[t], 1, "(units)");
      check_size(op, extent.c_str(), a.extents[t], 0, units, "units");
      check_dtype(op, extent.c_str(), a.extents[t], at::kInt);
      check_same_device(op, extent.c_str(), a.extents[t], "weights[0]", first);
    }
    if (steps[l].add >= 0) {
      const c10::SymInt& added = widths[static_cast<size_t>(steps[l].add)];
      TORCH_CHECK(added == units, op, ": layer ", l, " of program must add a value of as many units, ", units, ", got ",
                  added);
    }
    TORCH_CHECK(a.biases[l].dim() == 1 || a.biases[l].dim() == 2, op, ": ", bias,
                " must have shape (units) or (B, units), or (0) for none, got ", a.biases[l].sym_sizes());
    if (!no_bias(a.biases[l])) {
      check_size(op, bias.c_str(), a.biases[l], a.biases[l].dim() - 1, units, "units");
      if (a.biases[l].dim() == 2) {
        check_size(op, bias.c_str(), a.biases[l], 0, a.state.sym_size(0), "rows, as state has,");
      }
    }
    TORCH_CHECK(a.biases[l].scalar_type() == type || a.biases[l].scalar_type() == compute, op, ": ", bias,
                " must have the dtype of weights, ", type, ", or ", compute, ", got ", a.biases[l].scalar_type());
    check_same_device(op, bias.c_str(), a.biases[l], "weights[0]", first);
    if (l + 1 < steps.size()) {
      const std::string ends = element("unit_ends", l);
      check_dim(op, ends.c_str(), a.unit_ends[l], 1, "(D)");
      check_size(op, ends.c_str(), a.unit_ends[l], 0, a.variables, "entries, one per variable,");
      check_dtype(op, ends.c_str(), a.unit_ends[l], at::kInt);
      check_same_device(op, ends.c_str(), a.unit_ends[l], "weights[0]", first);
    }
  }
  check_size(op, "state", a.state, 1, features, "columns, R_in + units of all layers but the last,");
  check_dtype(op, "state", a.state, compute);
  check_same_device(op, "state", a.state, "weights[0]", first);
  check_draws(shared_arguments(a, head), a.variables, compute, "weights[0]", first);
  return head;
}

MaskedMlpTensors prepare_masked_mlp(const MaskedMlpSampleArguments& a) {
  const Head head = check_masked_mlp_sample(a);
  MaskedMlpTensors t;
  const auto keep = [&](const at::Tensor& tensor) { return t.kept.emplace_back(tensor.contiguous()).const_data_ptr(); };
  const auto keep_or_null = [&](const OptionalTensor& tensor) { return tensor.has_value() ? keep(*tensor) : nullptr; };
  const auto type = a.weights[0].scalar_type(), compute = compute_type(type);
  t.state = a.state.clone(at::MemoryFormat::Contiguous);
  t.drawn = prepare_draws(shared_arguments(a, head), head, a.variables);

  MaskedMlpSample& sample = t.sample = MaskedMlpSample{};
  sample.storage = storage_type(type);
  sample.activation = parse_layer_activation(masked_mlp_name, a.activation);
  sample.draws = t.drawn.draws;
  sample.transform = parse_transform(masked_mlp_name, a.head, a.constants);
  sample.by_input = a.by_input;
  const int64_t inputs = a.by_input ? 0 : 1, outputs = 1 - inputs;
  sample.in_rows = a.weights[0].size(inputs);
  sample.in_offsets = static_cast<const int64_t*>(keep_or_null(a.in_offsets));
  sample.out_offsets = static_cast<const int64_t*>(keep_or_null(a.out_offsets));
  const std::vector<MaskedMlpStep> steps = parse_program(masked_mlp_name, a.program);
  sample.hidden_layers = static_cast<int64_t>(steps.size()) - 1;
  sample.features = sample.in_rows;
  size_t t_weight = 0;
  for (size_t l = 0; l < steps.size(); ++l) {
    const MaskedMlpStep& step = steps[l];
    MaskedMlpLayer& layer = sample.layers[l];
    layer.units = step.terms() > 0 ? a.weights[t_weight].size(outputs) : masked_mlp_width(sample, step.add);
    layer.bias = no_bias(a.biases[l]) ? nullptr : keep(a.biases[l].to(compute));
    layer.bias_stride = a.biases[l].dim() == 2 ? layer.units : 0;
    layer.terms = static_cast<int32_t>(step.terms());
    layer.add = static_cast<int32_t>(step.add);
    layer.activated = step.activated;
    for (int64_t k = 0; k < step.terms(); ++k, ++t_weight) {
      layer.term[k] = {keep(a.weights[t_weight]),
                       a.by_input ? nullptr : static_cast<const int32_t*>(keep(a.extents[t_weight])),
                       static_cast<int32_t>(step.sources[k])};
    }
    if (l + 1 == steps.size()) continue;
    layer.unit_ends = static_cast<const int32_t*>(keep(a.unit_ends[l]));
    layer.offset = sample.features;
    sample.features += layer.units;
  }
  sample.state = t.state.mutable_data_ptr();
  return t;
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_mlp_sample_meta(const MaskedMlpSampleArguments& a) {
  parse_layer_activation(masked_mlp_name, a.activation);
  check_masked_mlp_sample(a);
  return empty_samples(draw_arguments(a));
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) { implement<masked_mlp_sample_meta>(m); }

}  // namespace ar_fast
