#include "nade.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <utility>

namespace ar_fast {

// ---------------------------------------------------------------- checks

Activation parse_activation(const char* op, std::string_view name) {
  if (name == "sigmoid") return Activation::sigmoid;
  if (name == "tanh") return Activation::tanh;
  if (name == "relu") return Activation::relu;
  TORCH_CHECK(false, op, ": activation must be sigmoid, tanh or relu, got '", name, "'");
}

namespace {

void check_offsets(const char* op, const char* name, const OptionalTensor& offsets, const c10::SymInt& variables,
                   const at::Tensor& weight) {
  if (!offsets.has_value()) return;
  check_dim(op, name, *offsets, 1, "(D + 1)");
  check_size(op, name, *offsets, 0, variables + 1, "entries, one more than the variables,");
  check_dtype(op, name, *offsets, at::kLong);
  check_same_device(op, name, *offsets, "in_weight", weight);
}

void check_order(const char* op, const OptionalTensor& order, const c10::SymInt& variables, const at::Tensor& weight) {
  if (!order.has_value()) return;
  check_dim(op, "order", *order, 1, "(D)");
  check_size(op, "order", *order, 0, variables, "entries, one per variable,");
  check_dtype(op, "order", *order, at::kLong);
  check_same_device(op, "order", *order, "in_weight", weight);
}

void check_weight(const char* op, const char* name, const at::Tensor& weight, const at::Tensor& in_weight) {
  check_dim(op, name, weight, 2, "(rows, H)");
  check_floating(op, name, weight);
  check_same_dtype(op, name, weight, "in_weight", in_weight);
  check_same_device(op, name, weight, "in_weight", in_weight);
  check_size(op, name, weight, 1, in_weight.sym_size(1), "hidden units, as in_weight has,");
}

void check_vector(const char* op, const char* name, const at::Tensor& vector, const char* shape,
                  const c10::SymInt& size, const char* rule, const at::Tensor& in_weight) {
  check_dim(op, name, vector, 1, shape);
  check_size(op, name, vector, 0, size, rule);
  check_same_dtype(op, name, vector, "in_weight", in_weight);
  check_same_device(op, name, vector, "in_weight", in_weight);
}

void check_rows(const char* op, const char* name, const at::Tensor& weight, const char* offsets_name,
                const OptionalTensor& offsets, const c10::SymInt& variables) {
  if (offsets.has_value()) return;
  TORCH_CHECK(weight.sym_size(0) % variables == 0 && weight.sym_size(0) > 0, op, ": ", name,
              " must have a multiple of D = ", variables, " rows unless ", offsets_name, " is given, got shape ",
              weight.sym_sizes());
}

}  // namespace

void check_nade(const char* op, const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                const OptionalTensor& activation_scale) {
  check_dim(op, "x", x, 2, "(B, D)");
  const c10::SymInt batch = x.sym_size(0), variables = x.sym_size(1);
  TORCH_CHECK(variables > 0, op, ": x must have at least one variable, got shape ", x.sym_sizes());
  check_weight(op, "in_weight", in_weight, in_weight);
  check_weight(op, "out_weight", out_weight, in_weight);
  const c10::SymInt hidden = in_weight.sym_size(1);
  TORCH_CHECK(in_bias.dim() == 1 || in_bias.dim() == 2, op, ": in_bias must have shape (H) or (B, H), got ",
              in_bias.sym_sizes());
  check_size(op, "in_bias", in_bias, in_bias.dim() - 1, hidden, "hidden units, as in_weight has,");
  if (in_bias.dim() == 2) check_size(op, "in_bias", in_bias, 0, batch, "rows, as x has,");
  check_same_dtype(op, "in_bias", in_bias, "in_weight", in_weight);
  check_same_device(op, "in_bias", in_bias, "in_weight", in_weight);
  if (out_bias.defined()) {
    check_vector(op, "out_bias", out_bias, "(R_out)", out_weight.sym_size(0), "entries, one per row of out_weight,",
                 in_weight);
  }
  check_same_device(op, "x", x, "in_weight", in_weight);
  check_order(op, order, variables, in_weight);
  check_offsets(op, "in_offsets", in_offsets, variables, in_weight);
  check_offsets(op, "out_offsets", out_offsets, variables, in_weight);
  if (activation_scale.has_value()) {
    check_vector(op, "activation_scale", *activation_scale, "(D)", variables, "entries, one per variable,", in_weight);
  }

  check_rows(op, "in_weight", in_weight, "in_offsets", in_offsets, variables);
  check_rows(op, "out_weight", out_weight, "out_offsets", out_offsets, variables);
  const auto type = x.scalar_type(), storage = in_weight.scalar_type();
  if (at::isFloatingType(type)) {
    TORCH_CHECK(in_offsets.has_value() || in_weight.sym_size(0) == variables, op,
                ": x must be an integer category where in_weight has a row per category, got ", dtype_name(type));
    TORCH_CHECK(type == storage || type == compute_type(storage), op, ": x must be bool, integer, ",
                dtype_name(storage), storage == compute_type(storage) ? "" : " or float32", ", got ", dtype_name(type));
  } else {
    TORCH_CHECK(at::isIntegralType(type, /*includeBool=*/true), op, ": x must be real, got ", dtype_name(type));
  }
}

void check_nade_head(const char* op, const at::Tensor& x, const at::Tensor& out_weight,
                     const OptionalTensor& in_offsets, const OptionalTensor& out_offsets, const Head& head,
                     const OptionalTensor& head_kinds) {
  check_head_rows(op, head, "out_weight", out_weight.sym_size(0), x.sym_size(1), out_offsets);
  check_head_kinds(op, head_kinds, x.sym_size(1), "in_weight", out_weight);
  const bool floating = at::isFloatingType(x.scalar_type()), per_variable = head.kind == HeadKind::per_variable;
  TORCH_CHECK(floating || !per_variable, op, ": x must be floating for a per_variable head, got ",
              dtype_name(x.scalar_type()));
  TORCH_CHECK(
      !floating || per_variable || !in_offsets.has_value(), op,
      ": x must be an integer category where in_weight has a row per category, but for a per_variable head, got ",
      dtype_name(x.scalar_type()));
}

Head check_nade_sample(const NadeSampleArguments& a) {
  const char* op = NadeSampleArguments::op;
  check_algorithm(op, a.algorithm, {"auto", "rows"});
  const Head head = parse_head(op, a.head, a.levels, a.head_kinds);
  TORCH_CHECK(a.variables > 0, op, ": variables must be positive, got ", a.variables);
  check_weight(op, "in_weight", a.in_weight, a.in_weight);
  check_weight(op, "out_weight", a.out_weight, a.in_weight);
  const c10::SymInt hidden = a.in_weight.sym_size(1), count = a.variables;
  check_vector(op, "out_bias", a.out_bias, "(R_out)", a.out_weight.sym_size(0), "entries, one per row of out_weight,",
               a.in_weight);
  check_dim(op, "state", a.state, 2, "(B, H)");
  check_size(op, "state", a.state, 1, hidden, "hidden units, as in_weight has,");
  check_dtype(op, "state", a.state, compute_type(a.in_weight.scalar_type()));
  check_same_device(op, "state", a.state, "in_weight", a.in_weight);
  check_order(op, a.order, count, a.in_weight);
  check_offsets(op, "in_offsets", a.in_offsets, count, a.in_weight);
  check_offsets(op, "out_offsets", a.out_offsets, count, a.in_weight);
  check_rows(op, "in_weight", a.in_weight, "in_offsets", a.in_offsets, count);
  check_rows(op, "out_weight", a.out_weight, "out_offsets", a.out_offsets, count);
  check_head_rows(op, head, "out_weight", a.out_weight.sym_size(0), count, a.out_offsets);
  check_head_kinds(op, a.head_kinds, count, "in_weight", a.in_weight);
  const bool one_row = !a.in_offsets.has_value() && a.in_weight.sym_size(0) == count;
  TORCH_CHECK(head.kind == HeadKind::categorical || head.kind == HeadKind::bernoulli ||
                  head.kind == HeadKind::per_variable || one_row,
              op, ": in_weight must have one row per variable, ", a.variables, ", for a mixture head, got shape ",
              a.in_weight.sym_sizes());
  TORCH_CHECK(head.kind != HeadKind::per_variable || a.in_offsets.has_value() || one_row, op,
              ": in_weight must have one row per variable, ", a.variables,
              ", for a per_variable head unless in_offsets is given, got shape ", a.in_weight.sym_sizes());
  if (a.activation_scale.has_value()) {
    check_vector(op, "activation_scale", *a.activation_scale, "(D)", count, "entries, one per variable,", a.in_weight);
  }
  check_sample_arguments(a, count, compute_type(a.in_weight.scalar_type()));
  return head;
}

// ---------------------------------------------------------------- preparation

namespace {

at::Tensor typed(const at::Tensor& tensor, at::ScalarType type) { return tensor.to(type).contiguous(); }

template <typename T>
const T* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

// variables and gathers need x or, in sampling, are given.
NadeTensors prepare_nade(int64_t variables, const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                         const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                         const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                         const OptionalTensor& activation_scale, Activation activation) {
  NadeTensors t;
  const auto type = compute_type(in_weight.scalar_type());
  t.in_weight = in_weight.contiguous();
  t.out_weight = out_weight.contiguous();
  if (in_bias.defined()) t.in_bias = typed(in_bias, type);
  if (out_bias.defined()) t.out_bias = typed(out_bias, type);
  t.order = contiguous_or_undefined(order);
  t.in_offsets = contiguous_or_undefined(in_offsets);
  t.out_offsets = contiguous_or_undefined(out_offsets);
  if (activation_scale.has_value()) t.activation_scale = typed(*activation_scale, type);

  t.model = NadeModel{};
  t.model.storage = storage_type(in_weight.scalar_type());
  t.model.activation = activation;
  t.model.variables = variables;
  t.model.hidden = in_weight.size(1);
  t.model.in_rows = in_weight.size(0);
  t.model.out_rows = out_weight.size(0);
  t.model.in_weight = t.in_weight.const_data_ptr();
  t.model.in_bias = pointer<void>(t.in_bias);
  t.model.in_bias_stride = in_bias.defined() && in_bias.dim() == 2 ? t.model.hidden : 0;
  t.model.out_weight = t.out_weight.const_data_ptr();
  t.model.out_bias = pointer<void>(t.out_bias);
  t.model.order = pointer<int64_t>(t.order);
  t.model.in_offsets = pointer<int64_t>(t.in_offsets);
  t.model.out_offsets = pointer<int64_t>(t.out_offsets);
  t.model.activation_scale = pointer<void>(t.activation_scale);

  t.input = NadeInput{};
  if (x.defined()) {
    const bool gathers =
        !at::isFloatingType(x.scalar_type()) && (in_offsets.has_value() || in_weight.size(0) != variables);
    t.x = typed(x, gathers ? at::kLong : type);
    t.input.batch = x.size(0);
    if (gathers) {
      t.input.categories = t.x.const_data_ptr<int64_t>();
    } else {
      t.input.x = t.x.const_data_ptr();
    }
  }
  return t;
}

}  // namespace

NadeForwardTensors prepare_nade_forward(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                                        const at::Tensor& out_weight, const at::Tensor& out_bias,
                                        const OptionalTensor& order, const OptionalTensor& in_offsets,
                                        const OptionalTensor& out_offsets, const OptionalTensor& activation_scale,
                                        const std::string& activation, const std::string& algorithm) {
  const char* op = "nade";
  check_algorithm(op, algorithm, {"auto", "chunks"});
  check_nade(op, x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale);
  NadeForwardTensors t{prepare_nade(x.size(1), x, in_weight, in_bias, out_weight, out_bias, order, in_offsets,
                                    out_offsets, activation_scale, parse_activation(op, activation))};
  t.parameters = at::empty({t.input.batch, t.model.out_rows}, compute_options(in_weight));
  t.output.parameters = t.parameters.mutable_data_ptr();
  return t;
}

NadeForwardTensors prepare_nade_log_prob(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                                         const at::Tensor& out_weight, const at::Tensor& out_bias,
                                         const OptionalTensor& order, const OptionalTensor& in_offsets,
                                         const OptionalTensor& out_offsets, const OptionalTensor& activation_scale,
                                         const std::string& activation, const std::string& head, int64_t levels,
                                         const OptionalTensor& head_kinds, bool per_variable, bool keep_parameters,
                                         const std::string& algorithm) {
  const char* op = "nade_log_prob";
  check_algorithm(op, algorithm, {"auto", "chunks"});
  const Head parsed = parse_head(op, head, levels, head_kinds);
  check_nade(op, x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale);
  check_nade_head(op, x, out_weight, in_offsets, out_offsets, parsed, head_kinds);
  NadeForwardTensors t{prepare_nade(x.size(1), x, in_weight, in_bias, out_weight, out_bias, order, in_offsets,
                                    out_offsets, activation_scale, parse_activation(op, activation))};
  const auto options = compute_options(in_weight);
  t.log_prob = per_variable ? at::empty(x.sizes(), options) : at::empty({t.input.batch}, options);
  t.parameters =
      keep_parameters ? at::empty({t.input.batch, t.model.out_rows}, options) : at::empty({0}, options);
  t.output.head = with_kinds(parsed, head_kinds, t.head_kinds);
  t.output.parameters = keep_parameters ? t.parameters.mutable_data_ptr() : nullptr;
  (per_variable ? t.output.log_prob_per_variable : t.output.log_prob) = t.log_prob.mutable_data_ptr();
  return t;
}

NadeBackwardTensors prepare_nade_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& in_weight,
                                          const at::Tensor& in_bias, const at::Tensor& out_weight,
                                          const OptionalTensor& order, const OptionalTensor& in_offsets,
                                          const OptionalTensor& out_offsets, const OptionalTensor& activation_scale,
                                          const std::string& activation, bool needs_x, bool needs_activation_scale,
                                          const std::string& algorithm) {
  const char* op = "nade_backward";
  check_algorithm(op, algorithm, {"auto", "chunks"});
  check_nade(op, x, in_weight, in_bias, out_weight, at::Tensor(), order, in_offsets, out_offsets, activation_scale);
  NadeBackwardTensors t{prepare_nade(x.size(1), x, in_weight, in_bias, out_weight, at::Tensor(), order, in_offsets,
                                     out_offsets, activation_scale, parse_activation(op, activation))};
  const int64_t batch = t.input.batch;
  TORCH_CHECK(grad.dim() == 2 && grad.size(0) == batch && grad.size(1) == t.model.out_rows, op,
              ": grad must have shape (B, R_out) = (", batch, ", ", t.model.out_rows, "), got ", grad.sizes());
  TORCH_CHECK(!needs_x || at::isFloatingType(x.scalar_type()), op, ": x must be floating to have a gradient, got ",
              dtype_name(x.scalar_type()));
  const auto options = compute_options(in_weight);
  t.grad = typed(grad, compute_type(in_weight.scalar_type()));
  t.grad_x = needs_x ? at::empty(x.sizes(), options) : at::empty({0}, options);
  t.grad_in_weight = at::empty(in_weight.sizes(), in_weight.options());
  t.grad_in_bias = at::empty(in_bias.sizes(), options);
  t.grad_out_weight = at::empty(out_weight.sizes(), in_weight.options());
  t.grad_activation_scale =
      needs_activation_scale ? at::empty({batch, t.model.variables}, options) : at::empty({0}, options);
  t.output.grad_parameters = t.grad.const_data_ptr();
  t.output.grad_in_weight = t.grad_in_weight.mutable_data_ptr();
  t.output.grad_out_weight = t.grad_out_weight.mutable_data_ptr();
  t.output.grad_in_bias = t.grad_in_bias.mutable_data_ptr();
  t.output.grad_x = needs_x ? t.grad_x.mutable_data_ptr() : nullptr;
  t.output.grad_activation_scale = needs_activation_scale ? t.grad_activation_scale.mutable_data_ptr() : nullptr;
  return t;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> NadeBackwardTensors::result() const {
  return {grad_x, grad_in_weight, grad_in_bias, grad_out_weight,
          output.grad_activation_scale ? grad_activation_scale.sum(0) : grad_activation_scale};
}

NadeSampleTensors prepare_nade_sample(const NadeSampleArguments& a) {
  const Head head = check_nade_sample(a);
  NadeSampleTensors t{prepare_nade(a.variables, at::Tensor(), a.in_weight, at::Tensor(), a.out_weight, a.out_bias,
                                   a.order, a.in_offsets, a.out_offsets, a.activation_scale,
                                   parse_activation(NadeSampleArguments::op, a.activation))};
  const int64_t batch = a.state.size(0);
  t.given = contiguous_or_undefined(a.given);
  t.known = contiguous_or_undefined(a.known);
  t.next = a.state.clone(at::MemoryFormat::Contiguous);
  t.values = at::empty({batch, a.stop - a.start}, a.state.options());
  t.log_prob = at::zeros({batch}, a.state.options().dtype(at::kDouble));
  t.sample.head = with_kinds(head, a.head_kinds, t.head_kinds);
  t.sample.gathers =
      head.kind != HeadKind::per_variable && (a.in_offsets.has_value() || a.in_weight.size(0) != a.variables);
  set_draws(t.sample, a);
  t.sample.given = pointer<void>(t.given);
  t.sample.known = pointer<uint8_t>(t.known);
  t.sample.state = t.next.mutable_data_ptr();
  t.sample.values = t.values.mutable_data_ptr();
  t.sample.log_prob = t.log_prob.mutable_data_ptr<double>();
  return t;
}

}  // namespace ar_fast
