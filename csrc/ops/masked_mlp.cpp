#include "masked_mlp.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "activation.h"
#include "library.h"

namespace ar_fast {
namespace {

std::string element(const char* list, size_t index) { return std::string(list) + "[" + std::to_string(index) + "]"; }

// One layer of the program.
struct Step {
  int64_t sources[masked_mlp_max_terms];
  int64_t add;
  bool activated;
  int64_t terms() const { return sources[0] < 0 ? 0 : sources[1] < 0 ? 1 : 2; }
};

constexpr size_t step_numbers = 4;

std::vector<Step> parse_program(at::IntArrayRef program) {
  const char* op = masked_mlp_name;
  TORCH_CHECK(!program.empty() && program.size() % step_numbers == 0 &&
                  program.size() / step_numbers <= masked_mlp_max_layers + 1,
              op, ": program must have 4 numbers for each of 1 to ", masked_mlp_max_layers + 1, " layers, got ",
              program.size(), " numbers");
  std::vector<Step> steps;
  for (size_t i = 0; i < program.size(); i += step_numbers) {
    const auto layer = static_cast<int64_t>(i / step_numbers);
    for (size_t j = 0; j < 3; ++j) {
      TORCH_CHECK(program[i + j] >= -1 && program[i + j] <= layer, op, ": program[", i + j,
                  "] must be -1 or a value before layer ", layer, ", 0 ... ", layer, ", got ", program[i + j]);
    }
    TORCH_CHECK(program[i + 3] == 0 || program[i + 3] == 1, op, ": program[", i + 3, "] must be 0 or 1, got ",
                program[i + 3]);
    TORCH_CHECK(program[i] >= 0 || (program[i + 1] < 0 && program[i + 2] >= 0 && layer > 0), op, ": layer ", layer,
                " of program must have a first term", layer > 0 ? ", or no term and a value added" : "", ", got [",
                program[i], ", ", program[i + 1], ", ", program[i + 2], "]");
    steps.push_back({{program[i], program[i + 1]}, program[i + 2], program[i + 3] == 1});
  }
  return steps;
}

bool no_bias(const at::Tensor& bias) { return bias.dim() == 1 && bias.sym_size(0) == 0; }

}  // namespace

void check_masked_mlp_sample(const at::Tensor& state, at::TensorList weights, at::TensorList biases,
                             at::TensorList extents, at::TensorList unit_ends, at::IntArrayRef program,
                             const OptionalTensor& order, const OptionalTensor& in_offsets,
                             const OptionalTensor& out_offsets,
                             const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
                             const Head& head, const OptionalTensor& head_kinds, int64_t start, int64_t stop,
                             double temperature) {
  const char* op = masked_mlp_name;
  const std::vector<Step> steps = parse_program(program);
  size_t terms = 0;
  for (const Step& step : steps) terms += static_cast<size_t>(step.terms());
  TORCH_CHECK(weights.size() == terms, op, ": weights must hold one tensor per term of program, ", terms, ", got ",
              weights.size());
  TORCH_CHECK(extents.size() == terms, op, ": extents must hold as many tensors as weights, ", terms, ", got ",
              extents.size());
  TORCH_CHECK(biases.size() == steps.size(), op, ": biases must hold one tensor per layer, ", steps.size(), ", got ",
              biases.size());
  TORCH_CHECK(unit_ends.size() + 1 == steps.size(), op, ": unit_ends must hold one tensor per layer but the last, ",
              steps.size() - 1, ", got ", unit_ends.size());
  for (size_t t = 0; t < terms; ++t) {
    check_dim(op, element("weights", t).c_str(), weights[t], 2, "(units, inputs)");
  }
  const at::Tensor& first = weights[0];
  check_floating(op, "weights[0]", first);
  const auto type = first.scalar_type(), compute = compute_type(type);
  TORCH_CHECK(variables > 0, op, ": variables must be positive, got ", variables);
  check_dim(op, "state", state, 2, "(B, R_in + units of all layers but the last)");
  const c10::SymInt in_rows = first.sym_size(1);
  // Of the values: the columns, then each layer.
  std::vector<c10::SymInt> widths{in_rows};
  c10::SymInt features = 0;
  for (size_t l = 0, t = 0; l < steps.size(); t += static_cast<size_t>(steps[l++].terms())) {
    features = features + widths[l];
    widths.push_back(steps[l].terms() > 0 ? weights[t].sym_size(0) : widths[static_cast<size_t>(steps[l].add)]);
  }
  const c10::SymInt out_rows = widths.back();
  for (const auto& [name, offsets, rows, of] :
       {std::tuple{"in_offsets", in_offsets, in_rows, "columns of weights[0]"},
        std::tuple{"out_offsets", out_offsets, out_rows, "units of the last layer"}}) {
    if (offsets.has_value()) {
      check_dim(op, name, *offsets, 1, "(D + 1)");
      check_size(op, name, *offsets, 0, variables + 1, "entries, one more than the variables,");
      check_dtype(op, name, *offsets, at::kLong);
      check_same_device(op, name, *offsets, "weights[0]", first);
    } else {
      TORCH_CHECK(rows % variables == 0 && rows > 0, op, ": ", of, " must be a multiple of D = ", variables,
                  " unless ", name, " is given, got ", rows);
    }
  }
  check_head_rows(op, head, "the last layer", out_rows, variables, out_offsets);
  check_head_kinds(op, head_kinds, variables, "weights[0]", first);
  TORCH_CHECK(head.kind == HeadKind::categorical || head.kind == HeadKind::per_variable ||
                  (!in_offsets.has_value() && in_rows == variables),
              op, ": weights[0] must have one column per variable, ", variables,
              ", but for a categorical or per_variable head, got shape ", first.sym_sizes());
  size_t t = 0;
  for (size_t l = 0; l < steps.size(); ++l) {
    const std::string bias = element("biases", l);
    const c10::SymInt& units = widths[l + 1];
    for (int64_t k = 0; k < steps[l].terms(); ++k, ++t) {
      const std::string weight = element("weights", t), extent = element("extents", t);
      check_same_dtype(op, weight.c_str(), weights[t], "weights[0]", first);
      check_same_device(op, weight.c_str(), weights[t], "weights[0]", first);
      check_size(op, weight.c_str(), weights[t], 0, units, "rows, one per unit of its layer,");
      check_size(op, weight.c_str(), weights[t], 1, widths[static_cast<size_t>(steps[l].sources[k])],
                 "columns, one per unit of the value it reads,");
      check_dim(op, extent.c_str(), extents[t], 1, "(units)");
      check_size(op, extent.c_str(), extents[t], 0, units, "units");
      check_dtype(op, extent.c_str(), extents[t], at::kInt);
      check_same_device(op, extent.c_str(), extents[t], "weights[0]", first);
    }
    if (steps[l].add >= 0) {
      const c10::SymInt& added = widths[static_cast<size_t>(steps[l].add)];
      TORCH_CHECK(added == units, op, ": layer ", l, " of program must add a value of as many units, ", units, ", got ",
                  added);
    }
    TORCH_CHECK(biases[l].dim() == 1 || biases[l].dim() == 2, op, ": ", bias,
                " must have shape (units) or (B, units), or (0) for none, got ", biases[l].sym_sizes());
    if (!no_bias(biases[l])) {
      check_size(op, bias.c_str(), biases[l], biases[l].dim() - 1, units, "units");
      if (biases[l].dim() == 2) check_size(op, bias.c_str(), biases[l], 0, state.sym_size(0), "rows, as state has,");
    }
    TORCH_CHECK(biases[l].scalar_type() == type || biases[l].scalar_type() == compute, op, ": ", bias,
                " must have the dtype of weights, ", type, ", or ", compute, ", got ", biases[l].scalar_type());
    check_same_device(op, bias.c_str(), biases[l], "weights[0]", first);
    if (l + 1 < steps.size()) {
      const std::string ends = element("unit_ends", l);
      check_dim(op, ends.c_str(), unit_ends[l], 1, "(D)");
      check_size(op, ends.c_str(), unit_ends[l], 0, variables, "entries, one per variable,");
      check_dtype(op, ends.c_str(), unit_ends[l], at::kInt);
      check_same_device(op, ends.c_str(), unit_ends[l], "weights[0]", first);
    }
  }
  check_size(op, "state", state, 1, features, "columns, R_in + units of all layers but the last,");
  check_dtype(op, "state", state, compute);
  check_same_device(op, "state", state, "weights[0]", first);
  if (order.has_value()) {
    check_dim(op, "order", *order, 1, "(D)");
    check_size(op, "order", *order, 0, variables, "entries, one per variable,");
    check_dtype(op, "order", *order, at::kLong);
    check_same_device(op, "order", *order, "weights[0]", first);
  }
  check_sample_arguments(op, state, variables, compute, given, known, start, stop, temperature);
}

MaskedMlpTensors prepare_masked_mlp(const at::Tensor& state, at::TensorList weights, at::TensorList biases,
                                    at::TensorList extents, at::TensorList unit_ends, at::IntArrayRef program,
                                    const OptionalTensor& order, const OptionalTensor& in_offsets,
                             const OptionalTensor& out_offsets,
                                    const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
                                    MlpActivation activation, const Head& head, const OptionalTensor& head_kinds,
                                    int64_t seed, int64_t first_index, int64_t start, int64_t stop,
                                    double temperature) {
  MaskedMlpTensors t;
  const auto keep = [&](const at::Tensor& tensor) { return t.kept.emplace_back(tensor.contiguous()).const_data_ptr(); };
  const auto keep_or_null = [&](const OptionalTensor& tensor) { return tensor.has_value() ? keep(*tensor) : nullptr; };
  const auto type = weights[0].scalar_type(), compute = compute_type(type);
  const int64_t batch = state.size(0);
  t.state = state.clone(at::MemoryFormat::Contiguous);
  t.values = at::empty({batch, stop - start}, state.options());
  t.log_prob = at::zeros({batch}, state.options().dtype(at::kDouble));

  MaskedMlpSample& sample = t.sample = MaskedMlpSample{};
  sample.storage = storage_type(type);
  sample.activation = activation;
  sample.batch = batch;
  sample.variables = variables;
  sample.in_rows = weights[0].size(1);
  sample.in_offsets = static_cast<const int64_t*>(keep_or_null(in_offsets));
  sample.out_offsets = static_cast<const int64_t*>(keep_or_null(out_offsets));
  sample.head = with_kinds(head, head_kinds, t.kept.emplace_back());
  const std::vector<Step> steps = parse_program(program);
  sample.hidden_layers = static_cast<int64_t>(steps.size()) - 1;
  sample.features = sample.in_rows;
  size_t t_weight = 0;
  for (size_t l = 0; l < steps.size(); ++l) {
    const Step& step = steps[l];
    MaskedMlpLayer& layer = sample.layers[l];
    layer.units = step.terms() > 0 ? weights[t_weight].size(0) : masked_mlp_width(sample, step.add);
    layer.bias = no_bias(biases[l]) ? nullptr : keep(biases[l].to(compute));
    layer.bias_stride = biases[l].dim() == 2 ? layer.units : 0;
    layer.terms = static_cast<int32_t>(step.terms());
    layer.add = static_cast<int32_t>(step.add);
    layer.activated = step.activated;
    for (int64_t k = 0; k < step.terms(); ++k, ++t_weight) {
      layer.term[k] = {keep(weights[t_weight]), static_cast<const int32_t*>(keep(extents[t_weight])),
                       static_cast<int32_t>(step.sources[k])};
    }
    if (l + 1 == steps.size()) continue;
    layer.unit_ends = static_cast<const int32_t*>(keep(unit_ends[l]));
    layer.offset = sample.features;
    sample.features += layer.units;
  }
  sample.start = start;
  sample.stop = stop;
  sample.seed = static_cast<uint64_t>(seed);
  sample.first_index = first_index;
  sample.temperature = temperature;
  sample.order = static_cast<const int64_t*>(keep_or_null(order));
  sample.given = keep_or_null(given);
  sample.known = static_cast<const uint8_t*>(keep_or_null(known));
  sample.state = t.state.mutable_data_ptr();
  sample.values = t.values.mutable_data_ptr();
  sample.log_prob = t.log_prob.mutable_data_ptr();
  return t;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_mlp_sample(
    const at::Tensor& state, at::TensorList weights, at::TensorList biases, at::TensorList extents,
    at::TensorList unit_ends, at::IntArrayRef program, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
    std::string activation, std::string head, int64_t levels, const OptionalTensor& head_kinds, int64_t seed,
    int64_t first_index, int64_t start, int64_t stop, double temperature, std::string algorithm) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(AR_FAST_OP("masked_mlp_sample"), "")
                             .typed<decltype(masked_mlp_sample)>();
  return op.call(state, weights, biases, extents, unit_ends, program, order, in_offsets, out_offsets, given, known,
                 variables, std::move(activation), std::move(head), levels, head_kinds, seed, first_index, start, stop,
                 temperature, std::move(algorithm));
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_mlp_sample_meta(
    const at::Tensor& state, at::TensorList weights, at::TensorList biases, at::TensorList extents,
    at::TensorList unit_ends, at::IntArrayRef program, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
    std::string activation, std::string head, int64_t levels, const OptionalTensor& head_kinds, int64_t /*seed*/,
    int64_t /*first_index*/, int64_t start, int64_t stop, double temperature, std::string /*algorithm*/) {
  parse_mlp_activation(masked_mlp_name, activation);
  check_masked_mlp_sample(state, weights, biases, extents, unit_ends, program, order, in_offsets, out_offsets, given,
                          known, variables, parse_head(masked_mlp_name, head, levels, head_kinds), head_kinds, start,
                          stop,
                          temperature);
  const c10::SymInt batch = state.sym_size(0);
  return {at::empty_symint({batch, stop - start}, state.options()),
          at::empty_symint({batch}, state.options().dtype(at::kDouble)),
          at::empty_symint(state.sym_sizes(), state.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) { m.impl("masked_mlp_sample", masked_mlp_sample_meta); }

}  // namespace ar_fast
