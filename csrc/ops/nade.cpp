#include "nade.h"

#include <utility>

namespace ar_fast {

// ---------------------------------------------------------------- checks

Activation parse_activation(const char* op, const std::string& name) {
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

  if (!in_offsets.has_value()) {
    TORCH_CHECK(in_weight.sym_size(0) % variables == 0 && in_weight.sym_size(0) > 0, op,
                ": in_weight must have a multiple of D = ", variables, " rows unless in_offsets is given, got shape ",
                in_weight.sym_sizes());
  }
  if (!out_offsets.has_value()) {
    TORCH_CHECK(out_weight.sym_size(0) % variables == 0 && out_weight.sym_size(0) > 0, op,
                ": out_weight must have a multiple of D = ", variables, " rows unless out_offsets is given, got shape ",
                out_weight.sym_sizes());
  }
  const bool gathers = in_offsets.has_value() || in_weight.sym_size(0) != variables;
  const auto type = x.scalar_type(), storage = in_weight.scalar_type();
  if (at::isFloatingType(type)) {
    TORCH_CHECK(!gathers, op, ": x must be an integer category where in_weight has a row per category, got ",
                dtype_name(type));
    TORCH_CHECK(type == storage || type == compute_type(storage), op, ": x must be bool, integer, ",
                dtype_name(storage), storage == compute_type(storage) ? "" : " or float32", ", got ", dtype_name(type));
  } else {
    TORCH_CHECK(at::isIntegralType(type, /*includeBool=*/true), op, ": x must be real, got ", dtype_name(type));
  }
}

void check_bernoulli(const char* op, const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& out_weight) {
  check_size(op, "in_weight", in_weight, 0, x.sym_size(1), "rows, one per variable,");
  check_size(op, "out_weight", out_weight, 0, x.sym_size(1), "rows, one per variable,");
}

void check_nade_sample(const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& out_weight,
                       const at::Tensor& out_bias, const OptionalTensor& order, const OptionalTensor& activation_scale,
                       const OptionalTensor& given, const OptionalTensor& known, int64_t start, int64_t stop,
                       double temperature) {
  const char* op = "nade_sample";
  check_weight(op, "in_weight", in_weight, in_weight);
  check_weight(op, "out_weight", out_weight, in_weight);
  const c10::SymInt variables = in_weight.sym_size(0), hidden = in_weight.sym_size(1);
  TORCH_CHECK(variables > 0, op, ": in_weight must have at least one row, got shape ", in_weight.sym_sizes());
  check_size(op, "out_weight", out_weight, 0, variables, "rows, one per variable,");
  check_vector(op, "out_bias", out_bias, "(D)", variables, "entries, one per variable,", in_weight);
  check_dim(op, "state", state, 2, "(B, H)");
  check_size(op, "state", state, 1, hidden, "hidden units, as in_weight has,");
  check_dtype(op, "state", state, compute_type(in_weight.scalar_type()));
  check_same_device(op, "state", state, "in_weight", in_weight);
  check_order(op, order, variables, in_weight);
  if (activation_scale.has_value()) {
    check_vector(op, "activation_scale", *activation_scale, "(D)", variables, "entries, one per variable,", in_weight);
  }
  check_sample_arguments(op, state, variables, compute_type(in_weight.scalar_type()), given, known, start, stop,
                         temperature);
}

// ---------------------------------------------------------------- preparation

namespace {

at::Tensor typed(const at::Tensor& tensor, at::ScalarType type) { return tensor.to(type).contiguous(); }

at::Tensor contiguous_or_undefined(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->contiguous() : at::Tensor();
}

template <typename T>
const T* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

}  // namespace

NadeTensors prepare_nade(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
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
  t.model.variables = order.has_value() ? order->size(0) : x.defined() ? x.size(1) : in_weight.size(0);
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
    const bool gathers = in_offsets.has_value() || in_weight.size(0) != x.size(1);
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

}  // namespace ar_fast
