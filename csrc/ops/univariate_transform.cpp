#include "univariate_transform.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/log_sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "autograd.h"
#include "transforms.h"

namespace ar_fast {
namespace {

template <typename Arguments>
Transform check_univariate_transform(const Arguments& a) {
  const char* op = Arguments::op;
  const Transform transform = parse_transform(op, a.transform, a.constants);
  TORCH_CHECK(transform.kind != TransformKind::none, op, ": transform must be the name of one, got '", a.transform, "'");
  check_dim(op, "x", a.x, 2, "(B, D)");
  check_dim(op, "parameters", a.parameters, 2, "(B, D K)");
  TORCH_CHECK(a.x.scalar_type() == at::kFloat || a.x.scalar_type() == at::kDouble, op,
              ": x must be float32 or float64, got ", dtype_name(a.x.scalar_type()));
  check_same_dtype(op, "parameters", a.parameters, "x", a.x);
  check_same_device(op, "parameters", a.parameters, "x", a.x);
  check_size(op, "parameters", a.parameters, 0, a.x.sym_size(0), "rows, as many as x,");
  TORCH_CHECK(a.x.sym_size(1) > 0, op, ": x must have at least one variable, got shape ", a.x.sym_sizes());
  check_transform_rows(op, transform, "parameters", a.parameters.sym_size(1), a.x.sym_size(1));
  TORCH_CHECK(!a.scale_first || transform.is_affine(), op, ": scale_first must be False for a spline, got True");
  if constexpr (requires { a.grad_y; }) {
    TORCH_CHECK(a.grad_y.sym_sizes() == a.x.sym_sizes(), op, ": grad_y must have the shape of x, ", a.x.sym_sizes(),
                ", got ", a.grad_y.sym_sizes());
    check_dim(op, "grad_log_det", a.grad_log_det, 1, "(B)");
    check_size(op, "grad_log_det", a.grad_log_det, 0, a.x.sym_size(0), "rows, as many as x,");
    check_same_dtype(op, "grad_y", a.grad_y, "x", a.x);
    check_same_dtype(op, "grad_log_det", a.grad_log_det, "x", a.x);
    check_same_device(op, "grad_y", a.grad_y, "x", a.x);
    check_same_device(op, "grad_log_det", a.grad_log_det, "x", a.x);
  }
  return transform;
}

template <typename Arguments>
UnivariateTransformTensors prepare(const Arguments& a) {
  const Transform transform = check_univariate_transform(a);
  UnivariateTransformTensors t;
  // Rows may be apart, as those of a part of the columns are.
  const bool rows = a.x.stride(1) == 1 && a.x.stride(0) >= a.x.size(1);
  t.x = rows ? a.x : a.x.contiguous();
  t.parameters = a.parameters.contiguous();
  t.own = {.transform = transform,
           .storage = storage_type(t.x.scalar_type()),
           .batch = t.x.size(0),
           .variables = t.x.size(1),
           .count = t.parameters.size(1) / t.x.size(1),
           .by_parameter = a.by_parameter,
           .scale_first = a.scale_first,
           .x = t.x.const_data_ptr(),
           .x_stride = t.x.stride(0),
           .parameters = t.parameters.const_data_ptr()};
  return t;
}

// The same by torch's functions, for derivatives of any order.
std::tuple<at::Tensor, at::Tensor> affine_by_torch(const Transform& transform, const at::Tensor& x,
                                                   const at::Tensor& parameters, bool scale_first) {
  const at::Tensor shift = parameters.select(-1, scale_first ? 1 : 0), a = parameters.select(-1, scale_first ? 0 : 1);
  const double* c = transform.constants;
  switch (transform.kind) {
    case TransformKind::affine_soft_clip: {
      const at::Tensor log_scale = a / (1 + (a / c[0]).abs());
      return {log_scale.exp() * x + shift, log_scale};
    }
    case TransformKind::affine_clamp: {
      const at::Tensor log_scale = a.clamp(c[0], c[1]);
      return {log_scale.exp() * x + shift, log_scale};
    }
    case TransformKind::affine_softplus: {
      const at::Tensor scale = at::softplus(a) + c[0];
      return {scale * x + shift, scale.log()};
    }
    case TransformKind::affine_sigmoid: {
      const at::Tensor scale = (a + c[0]).sigmoid() + c[1];
      return {scale * x + shift, scale.log()};
    }
    default: {
      const at::Tensor gate = a + c[0];
      return {gate.sigmoid() * x + gate.neg().sigmoid() * shift, at::log_sigmoid(gate)};
    }
  }
}

std::tuple<at::Tensor, at::Tensor> spline_by_torch(const Transform& transform, const at::Tensor& x,
                                                   const at::Tensor& parameters) {
  const double low = transform.constants[0], high = transform.constants[1], *c = transform.constants;
  const bool clips = transform.kind == TransformKind::spline_soft_clip;
  const int64_t rows = parameters.size(-1), bins = Spline<double>::bins_of(rows);
  const auto knots = [&](int64_t side) {
    const at::Tensor raw = parameters.narrow(-1, side * bins, bins);
    at::Tensor shares;
    if (clips) {
      shares = at::softmax(raw / (1 + (2 * raw / c[2]).abs()), -1);
    } else {
      const double least = c[2 + side];
      shares = least + (1 - least * static_cast<double>(bins)) * at::softmax(raw * c[5], -1);
    }
    const at::Tensor inner = low + (high - low) * shares.narrow(-1, 0, bins - 1).cumsum(-1);
    return at::cat({at::constant_pad_nd(inner, {1, 0}, low), at::full_like(x, high).unsqueeze(-1)}, -1);
  };
  const at::Tensor x_knots = knots(0), y_knots = knots(1);
  const at::Tensor raw = parameters.narrow(-1, 2 * bins, rows - 2 * bins);
  at::Tensor derivatives = clips ? (raw / (1 + (raw / c[2]).abs())).exp() : c[4] + at::softplus(raw);
  if (rows % 3 != 1) derivatives = at::constant_pad_nd(derivatives, {1, 1}, 1);
  const at::Tensor bin = (x.unsqueeze(-1) >= x_knots.narrow(-1, 1, bins - 1)).sum(-1, /*keepdim=*/true);
  const auto at_bin = [&](const at::Tensor& of, int64_t after) { return of.gather(-1, bin + after).squeeze(-1); };
  const at::Tensor left = at_bin(x_knots, 0), bottom = at_bin(y_knots, 0), width = at_bin(x_knots, 1) - left;
  const at::Tensor height = at_bin(y_knots, 1) - bottom, slope = height / width;
  const at::Tensor first = at_bin(derivatives, 0), last = at_bin(derivatives, 1);
  const at::Tensor outside = (x < low).logical_or(x > high);
  const at::Tensor z = at::where(outside, at::zeros_like(x), (x - left) / width), rest = 1 - z, middle = z * rest;
  const at::Tensor below = slope + (first + last - 2 * slope) * middle;
  const at::Tensor slope_of_f = first * rest * rest + 2 * slope * middle + last * z * z;
  const at::Tensor log_derivative = 2 * slope.log() + slope_of_f.log() - 2 * below.log();
  const at::Tensor y = bottom + height * (slope * z * z + first * middle) / below;
  return {at::where(outside, x, y), at::where(outside, at::zeros_like(x), log_derivative)};
}

std::tuple<at::Tensor, at::Tensor> by_torch(const UnivariateTransformArguments& a) {
  const Transform transform = parse_transform(a.op, a.transform, a.constants);
  const int64_t variables = a.x.size(1), count = a.parameters.size(1) / variables;
  const at::Tensor parameters = a.by_parameter ? a.parameters.unflatten(1, {count, variables}).transpose(1, 2)
                                               : a.parameters.unflatten(1, {variables, count});
  auto [y, log_derivative] = transform.is_affine() ? affine_by_torch(transform, a.x, parameters, a.scale_first)
                                                   : spline_by_torch(transform, a.x, parameters);
  return {y, log_derivative.sum(-1)};
}

// ---------------------------------------------------------------- fake implementations

std::tuple<at::Tensor, at::Tensor> univariate_transform_meta(const UnivariateTransformArguments& a) {
  check_univariate_transform(a);
  return {at::empty_symint(a.x.sym_sizes(), a.x.options()), at::empty_symint({a.x.sym_size(0)}, a.x.options())};
}

std::tuple<at::Tensor, at::Tensor> univariate_transform_backward_meta(const UnivariateTransformBackwardArguments& a) {
  check_univariate_transform(a);
  return {at::empty_symint(a.x.sym_sizes(), a.x.options()),
          at::empty_symint(a.parameters.sym_sizes(), a.parameters.options())};
}

// ---------------------------------------------------------------- gradient

struct UnivariateTransformFunction : torch::autograd::Function<UnivariateTransformFunction> {
  static variable_list forward(AutogradContext* context, const UnivariateTransformArguments& a, const at::Tensor& x,
                               const at::Tensor& parameters) {
    context->save_for_backward({x, parameters});
    auto& data = context->saved_data;
    data["transform"] = std::string(a.transform);
    data["constants"] = a.constants;
    data["by_parameter"] = a.by_parameter;
    data["scale_first"] = a.scale_first;
    const auto [y, log_det] = call_below_autograd(a);
    return {y, log_det};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list kept = context->get_saved_variables();
    const bool again = at::GradMode::is_enabled();
    if (again) separate(kept, kept.size());
    auto& data = context->saved_data;
    const std::vector<double> constants = data["constants"].toDoubleVector();
    const UnivariateTransformArguments a{
        kept[0], kept[1], data["transform"].toStringView(), constants, data["by_parameter"].toBool(),
        data["scale_first"].toBool()};
    // The gradients by x and parameters, behind that of the arguments, which are no tensor.
    variable_list by(2);
    if (again) {
      const auto [y, log_det] = by_torch(a);
      differentiable_gradients({y, log_det}, grads, kept, by);
    } else {
      std::tie(by[0], by[1]) = call(UnivariateTransformBackwardArguments{
          grads[0], grads[1], a.x, a.parameters, a.transform, a.constants, a.by_parameter, a.scale_first});
    }
    return {at::Tensor(), by[0], by[1]};
  }
};

std::tuple<at::Tensor, at::Tensor> univariate_transform_autograd(const UnivariateTransformArguments& a) {
  if (!needs_graph(a.x, a.parameters)) return call_below_autograd(a);
  const variable_list result = UnivariateTransformFunction::apply(a, a.x, a.parameters);
  return {result[0], result[1]};
}

}  // namespace

UnivariateTransformTensors prepare_univariate_transform(const UnivariateTransformArguments& a) { return prepare(a); }
UnivariateTransformTensors prepare_univariate_transform(const UnivariateTransformBackwardArguments& a) {
  return prepare(a);
}

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) {
  implement<univariate_transform_meta>(m);
  implement<univariate_transform_backward_meta>(m);
}
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Autograd, m) { implement<univariate_transform_autograd>(m); }

}  // namespace ar_fast
