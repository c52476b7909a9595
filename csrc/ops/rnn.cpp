#include "rnn.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/le.h>
#include <ATen/ops/zeros.h>

#include <string>
#include <utility>

namespace ar_fast {
namespace {

std::string layer_of(const char* list, size_t index) { return std::string(list) + "[" + std::to_string(index) + "]"; }

DrawArguments rnn_draws(const RnnSampleArguments& a) {
  static const OptionalTensor none;
  return {rnn_name, a.last, a.order, a.given, a.known, none, a.seed, a.first_index, a.start, a.stop, a.temperature,
          a.first_position, a.top_k, a.top_p, "last"};
}

void check_weight_or_compute(const char* name, const at::Tensor& tensor, at::ScalarType type) {
  const auto got = tensor.scalar_type();
  TORCH_CHECK(got == type || got == compute_type(type), rnn_name, ": ", name,
              " must have the dtype of recurrent_weights[0], ", dtype_name(type), ", or ",
              dtype_name(compute_type(type)), ", got ", dtype_name(got));
}

// Checks a weight (G H, H) in the dtype of the first one.
void check_layer_weight(const std::string& name, const at::Tensor& weight, const c10::SymInt& rows,
                        const at::Tensor& first) {
  check_dim(rnn_name, name.c_str(), weight, 2, "(G H, H)");
  check_size(rnn_name, name.c_str(), weight, 0, rows, "rows, H for each gate of the cell,");
  check_size(rnn_name, name.c_str(), weight, 1, first.sym_size(1), "columns, one per hidden unit,");
  check_same_dtype(rnn_name, name.c_str(), weight, "recurrent_weights[0]", first);
  check_same_device(rnn_name, name.c_str(), weight, "recurrent_weights[0]", first);
}

// Checks a bias (G H).
void check_layer_bias(const std::string& name, const at::Tensor& bias, const c10::SymInt& rows,
                      const at::Tensor& first) {
  check_dim(rnn_name, name.c_str(), bias, 1, "(G H)");
  check_size(rnn_name, name.c_str(), bias, 0, rows, "entries, H for each gate of the cell,");
  check_weight_or_compute(name.c_str(), bias, first.scalar_type());
  check_same_device(rnn_name, name.c_str(), bias, "recurrent_weights[0]", first);
}

void check_list(const char* name, at::TensorList list, size_t count, const char* rule) {
  TORCH_CHECK(list.size() == count, rnn_name, ": ", name, " must hold one tensor per ", rule, ", ", count, ", got ",
              list.size());
}

// Checks a tensor (B).
void check_row_tensor(const char* name, const OptionalTensor& tensor, const c10::SymInt& batch, at::ScalarType type,
                      const at::Tensor& first) {
  if (!tensor.has_value()) return;
  check_dim(rnn_name, name, *tensor, 1, "(B)");
  check_size(rnn_name, name, *tensor, 0, batch, "rows, as state has in its second dimension,");
  check_dtype(rnn_name, name, *tensor, type);
  check_same_device(rnn_name, name, *tensor, "recurrent_weights[0]", first);
}

}  // namespace

RnnCell parse_cell(std::string_view name) {
  if (name == "gru") return RnnCell::gru;
  if (name == "lstm") return RnnCell::lstm;
  if (name == "rnn") return RnnCell::rnn;
  if (name == "rnn_relu") return RnnCell::rnn_relu;
  TORCH_CHECK(false, rnn_name, ": cell must be gru, lstm, rnn or rnn_relu, got '", name, "'");
}

Head check_rnn_sample(const RnnSampleArguments& a) {
  const char* op = rnn_name;
  check_algorithm(op, a.algorithm, {"auto", "block", "grid"});
  const RnnCell cell = parse_cell(a.cell);
  const Head head = parse_head(op, a.head, a.levels);
  const size_t layers = a.recurrent_weights.size();
  TORCH_CHECK(layers >= 1 && layers <= rnn_most_layers, op, ": recurrent_weights must hold one tensor per layer, 1 to ",
              rnn_most_layers, ", got ", layers);
  check_list("recurrent_biases", a.recurrent_biases, layers, "layer");
  check_list("in_weights", a.in_weights, layers - 1, "layer after the first");
  check_list("in_biases", a.in_biases, layers - 1, "layer after the first");
  const at::Tensor& first = a.recurrent_weights[0];
  check_dim(op, "recurrent_weights[0]", first, 2, "(G H, H)");
  check_floating(op, "recurrent_weights[0]", first);
  const auto type = first.scalar_type(), compute = compute_type(type);
  const c10::SymInt hidden = first.sym_size(1), rows = hidden * rnn_gates(cell);
  TORCH_CHECK(hidden > 0, op, ": recurrent_weights[0] must have at least one hidden unit, got shape ",
              first.sym_sizes());
  for (size_t l = 0; l < layers; ++l) {
    check_layer_weight(layer_of("recurrent_weights", l), a.recurrent_weights[l], rows, first);
    check_layer_bias(layer_of("recurrent_biases", l), a.recurrent_biases[l], rows, first);
    if (l == 0) continue;
    check_layer_weight(layer_of("in_weights", l - 1), a.in_weights[l - 1], rows, first);
    check_layer_bias(layer_of("in_biases", l - 1), a.in_biases[l - 1], rows, first);
  }
  check_dim(op, "state", a.state, 3, "(L, B, H)");
  const c10::SymInt batch = a.state.sym_size(1);
  TORCH_CHECK((cell == RnnCell::lstm) == a.cell_state.has_value(), op,
              ": cell_state must be given for an lstm, and for no other cell, got ",
              a.cell_state.has_value() ? "some" : "none", " for '", a.cell, "'");
  const std::pair<const char*, OptionalTensor> states[] = {{"state", a.state}, {"cell_state", a.cell_state}};
  for (const auto& [name, tensor] : states) {
    if (!tensor.has_value()) continue;
    check_dim(op, name, *tensor, 3, "(L, B, H)");
    check_size(op, name, *tensor, 0, static_cast<int64_t>(layers), "layers, as recurrent_weights has,");
    check_size(op, name, *tensor, 1, batch, "rows");
    check_size(op, name, *tensor, 2, hidden, "hidden units, as recurrent_weights[0] has,");
    check_dtype(op, name, *tensor, compute);
    check_same_device(op, name, *tensor, "recurrent_weights[0]", first);
  }
  check_row_tensor("last", a.last, batch, compute, first);
  check_row_tensor("finished", a.finished, batch, at::kBool, first);
  check_row_tensor("limits", a.limits, batch, at::kLong, first);

  check_dim(op, "out_weight", a.out_weight, 2, "(K, H)");
  check_size(op, "out_weight", a.out_weight, 1, hidden, "columns, one per hidden unit,");
  check_same_dtype(op, "out_weight", a.out_weight, "recurrent_weights[0]", first);
  check_same_device(op, "out_weight", a.out_weight, "recurrent_weights[0]", first);
  const c10::SymInt parameters = a.out_weight.sym_size(0);
  check_head_rows(op, head, "out_weight", parameters, 1, std::nullopt);
  TORCH_CHECK(parameters > 0, op, ": out_weight must have a row per parameter, got shape ", a.out_weight.sym_sizes());
  check_dim(op, "out_bias", a.out_bias, 1, "(K)");
  check_size(op, "out_bias", a.out_bias, 0, parameters, "entries, one per row of out_weight,");
  check_weight_or_compute("out_bias", a.out_bias, type);
  check_same_device(op, "out_bias", a.out_bias, "recurrent_weights[0]", first);

  const bool categorical = head.kind == HeadKind::categorical;
  check_dim(op, "in_table", a.in_table, 2, "(V, G H)");
  check_size(op, "in_table", a.in_table, 0, categorical ? parameters : c10::SymInt(1),
             categorical ? "rows, one per category," : "row, which a value scales,");
  check_size(op, "in_table", a.in_table, 1, rows, "columns, H for each gate of the cell,");
  check_weight_or_compute("in_table", a.in_table, type);
  check_same_device(op, "in_table", a.in_table, "recurrent_weights[0]", first);
  TORCH_CHECK(a.in_bias.dim() == 1 || a.in_bias.dim() == 2, op, ": in_bias must have shape (G H) or (B, G H), got ",
              a.in_bias.sym_sizes());
  check_size(op, "in_bias", a.in_bias, a.in_bias.dim() - 1, rows, "columns, H for each gate of the cell,");
  if (a.in_bias.dim() == 2) {
    check_size(op, "in_bias", a.in_bias, 0, batch, "rows, as state has in its second dimension,");
  }
  check_weight_or_compute("in_bias", a.in_bias, type);
  check_same_device(op, "in_bias", a.in_bias, "recurrent_weights[0]", first);

  TORCH_CHECK(a.variables > 0, op, ": variables must be positive, got ", a.variables);
  TORCH_CHECK(a.first_position >= 0, op, ": first_position must not be negative, got ", a.first_position);
  check_draws(rnn_draws(a), a.variables, compute, "recurrent_weights[0]", first);
  check_truncation(rnn_draws(a), head, parameters);
  TORCH_CHECK(a.stop_token == -1 || (categorical && a.stop_token >= 0 && parameters > a.stop_token), op,
              ": stop_token must be -1 for none, or a category of a categorical head, got ", a.stop_token);
  return head;
}

RnnTensors prepare_rnn_sample(const RnnSampleArguments& a) {
  const Head head = check_rnn_sample(a);
  const at::Tensor& first = a.recurrent_weights[0];
  const auto compute = compute_type(first.scalar_type());
  RnnTensors t;
  RnnSample& sample = t.sample = RnnSample{};
  const auto keep = [&](const at::Tensor& tensor) {
    t.kept.push_back(tensor.contiguous());
    return t.kept.back().const_data_ptr();
  };
  sample.storage = storage_type(first.scalar_type());
  sample.cell = parse_cell(a.cell);
  sample.gathers = head.kind == HeadKind::categorical;
  sample.begins = a.first_position + a.start == 0;
  sample.layers = static_cast<int64_t>(a.recurrent_weights.size());
  sample.hidden = first.size(1);
  sample.parameters = a.out_weight.size(0);
  for (size_t l = 0; l < a.recurrent_weights.size(); ++l) {
    sample.layer[l].recurrent_weight = keep(a.recurrent_weights[l]);
    sample.layer[l].recurrent_bias = keep(a.recurrent_biases[l].to(compute));
    if (l == 0) continue;
    sample.layer[l].in_weight = keep(a.in_weights[l - 1]);
    sample.layer[l].in_bias = keep(a.in_biases[l - 1].to(compute));
  }
  sample.in_table = keep(a.in_table.to(compute));
  sample.in_bias = keep(a.in_bias.to(compute));
  sample.in_bias_stride = a.in_bias.dim() == 2 ? sample.gates() * sample.hidden : 0;
  sample.out_weight = keep(a.out_weight);
  sample.out_bias = keep(a.out_bias.to(compute));
  t.drawn = prepare_draws(rnn_draws(a), head, a.variables);
  sample.draws = t.drawn.draws;
  sample.stop_token = a.stop_token;
  // The kernel updates these copies in place, so the caller's tensors are not modified.
  t.state = a.state.clone(at::MemoryFormat::Contiguous);
  sample.state = t.state.mutable_data_ptr();
  if (a.cell_state.has_value()) {
    t.cell_state = a.cell_state->clone(at::MemoryFormat::Contiguous);
    sample.cell_state = t.cell_state.mutable_data_ptr();
  } else {
    t.cell_state = at::empty({0}, a.state.options());
  }
  t.last = a.last.clone(at::MemoryFormat::Contiguous);
  sample.last = t.last.mutable_data_ptr();
  t.finished = a.finished.has_value() ? a.finished->clone(at::MemoryFormat::Contiguous)
                                      : at::zeros({a.last.size(0)}, a.last.options().dtype(at::kBool));
  if (a.limits.has_value()) {
    t.kept.push_back(a.limits->contiguous());
    sample.limits = t.kept.back().const_data_ptr<int64_t>();
    t.finished.logical_or_(at::le(*a.limits, a.start));
  }
  // The kernel only writes the values of rows that are not finished.
  if (a.finished.has_value() || a.limits.has_value() || a.stop_token >= 0) t.drawn.values.fill_(sample.filler());
  sample.finished = reinterpret_cast<uint8_t*>(t.finished.mutable_data_ptr<bool>());
  return t;
}

RnnSampleResult RnnTensors::result() const {
  return {drawn.values, drawn.log_prob, state, cell_state, last, finished};
}

namespace {

RnnSampleResult rnn_sample_meta(const RnnSampleArguments& a) {
  check_rnn_sample(a);
  const c10::SymInt batch = a.last.sym_size(0);
  return {at::empty_symint({batch, a.stop - a.start}, a.last.options()),
          at::empty_symint({batch}, a.last.options().dtype(at::kDouble)),
          at::empty_symint(a.state.sym_sizes(), a.state.options()),
          a.cell_state.has_value() ? at::empty_symint(a.state.sym_sizes(), a.state.options())
                                   : at::empty_symint({0}, a.state.options()),
          at::empty_symint({batch}, a.last.options()), at::empty_symint({batch}, a.last.options().dtype(at::kBool))};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) { implement<rnn_sample_meta>(m); }

}  // namespace ar_fast
