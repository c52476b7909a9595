#include "masked_linear.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <numeric>

#include "../kernels/masked_linear.h"
#include "activation.h"
#include "autograd.h"

namespace ar_fast {
namespace {

bool given(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }

void check_index(const char* op, const char* name, const OptionalTensor& tensor, const c10::SymInt& size,
                 const char* shape, const at::Tensor& beside) {
  if (!given(tensor)) return;
  check_dim(op, name, *tensor, 1, shape);
  check_size(op, name, *tensor, 0, size, "elements");
  check_dtype(op, name, *tensor, at::kInt);
  check_same_device(op, name, *tensor, "the other tensors", beside);
}

void check_mask(const char* op, const MaskTensors& mask, const c10::SymInt& out_features,
                const c10::SymInt& in_features, const at::Tensor& beside) {
  if (given(mask.extents)) {
    TORCH_CHECK(!given(mask.tiles) && !given(mask.dense), op,
                ": a mask is either nested (extents) or in blocks (tiles, dense), got both");
    check_index(op, "extents", mask.extents, out_features, "(O)", beside);
    check_index(op, "rows", mask.rows, out_features, "(O)", beside);
    check_index(op, "columns", mask.columns, in_features, "(I)", beside);
    return;
  }
  TORCH_CHECK(given(mask.tiles) && given(mask.dense), op,
              ": a mask needs extents, or both tiles and dense, got ",
              given(mask.tiles) ? "tiles alone" : given(mask.dense) ? "dense alone" : "neither");
  TORCH_CHECK(!given(mask.rows) && !given(mask.columns), op, ": rows and columns belong to a nested mask (extents)");
  check_dim(op, "dense", *mask.dense, 2, "(O, I)");
  check_size(op, "dense", *mask.dense, 0, out_features, "rows");
  check_size(op, "dense", *mask.dense, 1, in_features, "columns");
  check_dtype(op, "dense", *mask.dense, at::kBool);
  check_same_device(op, "dense", *mask.dense, "the other tensors", beside);
  check_dim(op, "tiles", *mask.tiles, 2, "(ceil(O / 64), ceil(I / 64))");
  check_size(op, "tiles", *mask.tiles, 0, (out_features + mask_tile_size - 1) / mask_tile_size, "tiles");
  check_size(op, "tiles", *mask.tiles, 1, (in_features + mask_tile_size - 1) / mask_tile_size, "tiles");
  check_dtype(op, "tiles", *mask.tiles, at::kInt);
  check_same_device(op, "tiles", *mask.tiles, "the other tensors", beside);
}

void check_steps(const char* op, const MaskTensors& mask, at::IntArrayRef steps, const c10::SymInt& out_features,
                 const c10::SymInt& in_features) {
  if (steps.empty()) return;
  TORCH_CHECK(given(mask.extents) && !given(mask.rows) && !given(mask.columns), op,
              ": steps belong to a mask with extents and without rows and columns");
  const int64_t outputs = out_features.guard_int(__FILE__, __LINE__);
  const int64_t inputs = in_features.guard_int(__FILE__, __LINE__);
  const int64_t each = mask_step_rows(outputs), count = outputs == 0 ? 0 : (outputs + each - 1) / each + 1;
  TORCH_CHECK(static_cast<int64_t>(steps.size()) == count, op, ": steps must have ", count, " numbers for ", outputs,
              " outputs, got ", steps.size());
  TORCH_CHECK(std::is_sorted(steps.begin(), steps.end()) && steps.front() >= 0 && steps.back() <= inputs, op,
              ": steps must ascend from at least 0 to at most ", inputs, ", the inputs, got ", steps);
}

// Checks a matrix of rows (..., features) that is multiplied by a weight.
void check_rows(const char* op, const char* name, const at::Tensor& tensor, const c10::SymInt& features,
                const char* of) {
  TORCH_CHECK(tensor.dim() >= 1, op, ": ", name, " must have at least one dimension, got a scalar");
  TORCH_CHECK(tensor.sym_size(-1) == features, op, ": ", name, " must have shape (..., ", features, ") to match ", of,
              ", got ", tensor.sym_sizes());
}

}  // namespace

void check_masked_linear(const MaskedLinearArguments& a) {
  const char* op = MaskedLinearArguments::op;
  check_algorithm(op, a.algorithm, {"auto", "panels", "fused", "dense"});
  check_dim(op, "weight", a.weight, 2, "(O, I)");
  check_floating(op, "weight", a.weight);
  check_rows(op, "input", a.input, a.weight.sym_size(1), "weight");
  check_same_dtype(op, "input", a.input, "weight", a.weight);
  check_same_device(op, "input", a.input, "weight", a.weight);
  if (given(a.bias)) {
    check_dim(op, "bias", *a.bias, 1, "(O)");
    check_size(op, "bias", *a.bias, 0, a.weight.sym_size(0), "elements");
    check_same_dtype(op, "bias", *a.bias, "weight", a.weight);
    check_same_device(op, "bias", *a.bias, "weight", a.weight);
  }
  check_mask(op, mask_of(a), a.weight.sym_size(0), a.weight.sym_size(1), a.weight);
  check_steps(op, mask_of(a), a.steps, a.weight.sym_size(0), a.weight.sym_size(1));
}

void check_masked_linear_grad_input(const MaskedLinearGradInputArguments& a) {
  const char* op = MaskedLinearGradInputArguments::op;
  check_algorithm(op, a.algorithm, {"auto", "panels", "fused", "dense"});
  check_dim(op, "weight", a.weight, 2, "(O, I)");
  check_floating(op, "weight", a.weight);
  check_rows(op, "grad_output", a.grad_output, a.weight.sym_size(0), "weight");
  check_same_dtype(op, "grad_output", a.grad_output, "weight", a.weight);
  check_same_device(op, "grad_output", a.grad_output, "weight", a.weight);
  check_mask(op, mask_of(a), a.weight.sym_size(0), a.weight.sym_size(1), a.weight);
  check_steps(op, mask_of(a), a.steps, a.weight.sym_size(0), a.weight.sym_size(1));
}

void check_masked_linear_grad_weight(const MaskedLinearGradWeightArguments& a) {
  const char* op = MaskedLinearGradWeightArguments::op;
  check_algorithm(op, a.algorithm, {"auto", "panels", "fused", "dense"});
  check_floating(op, "input", a.input);
  TORCH_CHECK(a.input.dim() >= 1, op, ": input must have at least one dimension, got a scalar");
  TORCH_CHECK(a.grad_output.dim() == a.input.dim() &&
                  a.grad_output.sym_sizes().slice(0, a.input.dim() - 1) ==
                      a.input.sym_sizes().slice(0, a.input.dim() - 1),
              op, ": grad_output must have input's shape except in the last dimension, ", a.input.sym_sizes(), ", got ",
              a.grad_output.sym_sizes());
  check_same_dtype(op, "grad_output", a.grad_output, "input", a.input);
  check_same_device(op, "grad_output", a.grad_output, "input", a.input);
  check_mask(op, mask_of(a), a.grad_output.sym_size(-1), a.input.sym_size(-1), a.input);
  check_steps(op, mask_of(a), a.steps, a.grad_output.sym_size(-1), a.input.sym_size(-1));
}

namespace {

// The three products; `a` is the arguments of any of them and gives the mask.
template <typename Arguments>
at::Tensor product(const Arguments& a, const at::Tensor& input, const at::Tensor& weight) {
  return call(MaskedLinearArguments{input, weight, std::nullopt, a.extents, a.rows, a.columns, a.tiles, a.dense,
                                    a.algorithm, std::nullopt, a.steps});
}
template <typename Arguments>
at::Tensor grad_input(const Arguments& a, const at::Tensor& grad_output, const at::Tensor& weight) {
  return call(MaskedLinearGradInputArguments{grad_output, weight, a.extents, a.rows, a.columns, a.tiles, a.dense,
                                             a.algorithm, a.steps});
}
template <typename Arguments>
at::Tensor grad_weight(const Arguments& a, const at::Tensor& grad_output, const at::Tensor& input) {
  return call(MaskedLinearGradWeightArguments{grad_output, input, a.extents, a.rows, a.columns, a.tiles, a.dense,
                                              a.algorithm, a.steps});
}

// For no activation, or one whose derivative can be computed from the result.
struct MaskedLinearFunction : torch::autograd::Function<MaskedLinearFunction> {
  template <typename... Members>
  static at::Tensor forward(AutogradContext* context, const Members&... members) {
    const MaskedLinearArguments a{members...};
    const at::Tensor y = call_below_autograd(a);
    const Activation f = parse_layer_activation(a.op, a.activation);
    // bias is not needed, and neither is y if no activation was applied.
    save(context, MaskedLinearGradInputArguments{a.input, a.weight, a.extents, a.rows, a.columns, a.tiles, a.dense,
                                                 a.algorithm, a.steps},
         {f == Activation::none ? at::Tensor() : y});
    context->saved_data["bias"] = requires_grad(a.bias);
    context->saved_data["activation"] = static_cast<int64_t>(f);
    return y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list out(count_members<MaskedLinearArguments>());
    if (!grads[0].defined()) return out;
    const auto [kept, others] = saved<MaskedLinearGradInputArguments>(context);
    const auto f = static_cast<Activation>(context->saved_data["activation"].toInt());
    const at::Tensor grad = activate_backward(f, grads[0], others[0]);
    const at::Tensor &input = kept.grad_output, &weight = kept.weight;
    if (context->needs_input_grad(0)) out[0] = grad_input(kept, grad, weight);
    if (context->needs_input_grad(1)) out[1] = grad_weight(kept, grad, input);
    if (context->saved_data["bias"].toBool()) {
      // Sums over all rows at once instead of a view: a batch of gradients has no such view.
      std::vector<int64_t> rows(grad.dim() - 1);
      std::iota(rows.begin(), rows.end(), 0);
      out[2] = rows.empty() ? grad : grad.sum(rows);
    }
    return out;
  }
};

// dX = dY (W * M): linear in dY and in W.
struct GradInputFunction : torch::autograd::Function<GradInputFunction> {
  template <typename... Members>
  static at::Tensor forward(AutogradContext* context, const Members&... members) {
    const MaskedLinearGradInputArguments a{members...};
    save(context, a);
    return call_below_autograd(a);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list out(count_members<MaskedLinearGradInputArguments>());
    if (!grads[0].defined()) return out;
    const auto [a, others] = saved<MaskedLinearGradInputArguments>(context);
    if (context->needs_input_grad(0)) out[0] = product(a, grads[0], a.weight);
    if (context->needs_input_grad(1)) out[1] = grad_weight(a, a.grad_output, grads[0]);
    return out;
  }
};

// dW = (dY^T X) * M: linear in dY and in X.
struct GradWeightFunction : torch::autograd::Function<GradWeightFunction> {
  template <typename... Members>
  static at::Tensor forward(AutogradContext* context, const Members&... members) {
    const MaskedLinearGradWeightArguments a{members...};
    save(context, a);
    return call_below_autograd(a);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list out(count_members<MaskedLinearGradWeightArguments>());
    if (!grads[0].defined()) return out;
    const auto [a, others] = saved<MaskedLinearGradWeightArguments>(context);
    if (context->needs_input_grad(0)) out[0] = product(a, a.input, grads[0]);
    if (context->needs_input_grad(1)) out[1] = grad_input(a, a.grad_output, grads[0]);
    return out;
  }
};

at::Tensor masked_linear_autograd(const MaskedLinearArguments& a) {
  if (!needs_graph(a.input, a.weight, a.bias)) return call_below_autograd(a);
  const Activation f = parse_layer_activation(a.op, a.activation);
  if (derivative_from_result(f)) return apply<MaskedLinearFunction>(a);
  MaskedLinearArguments linear = a;
  linear.activation = std::nullopt;
  return activate(f, apply<MaskedLinearFunction>(linear));
}

at::Tensor masked_linear_grad_input_autograd(const MaskedLinearGradInputArguments& a) {
  if (needs_graph(a.grad_output, a.weight)) return apply<GradInputFunction>(a);
  return call_below_autograd(a);
}

at::Tensor masked_linear_grad_weight_autograd(const MaskedLinearGradWeightArguments& a) {
  if (needs_graph(a.grad_output, a.input)) return apply<GradWeightFunction>(a);
  return call_below_autograd(a);
}

// Autocast does the same as for F.linear: operands take the autocast type.
template <c10::DeviceType device, typename Arguments>
at::Tensor masked_linear_autocast(const Arguments& arguments) {
  c10::impl::ExcludeDispatchKeyGuard guard(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto cast = [](at::Tensor& tensor) {
    tensor = at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
  };
  Arguments a = arguments;
  if constexpr (requires { a.input; }) cast(a.input);
  if constexpr (requires { a.weight; }) cast(a.weight);
  if constexpr (requires { a.grad_output; }) cast(a.grad_output);
  if constexpr (requires { a.bias; }) {
    if (given(a.bias)) cast(*a.bias);
  }
  return call(a);
}

at::Tensor empty_rows(const at::Tensor& rows, const c10::SymInt& features) {
  c10::SymDimVector sizes(rows.sym_sizes().begin(), rows.sym_sizes().end());
  sizes.back() = features;
  return at::empty_symint(sizes, rows.options());
}

at::Tensor masked_linear_meta(const MaskedLinearArguments& a) {
  parse_layer_activation(a.op, a.activation);
  check_masked_linear(a);
  return empty_rows(a.input, a.weight.sym_size(0));
}

at::Tensor masked_linear_grad_input_meta(const MaskedLinearGradInputArguments& a) {
  check_masked_linear_grad_input(a);
  return empty_rows(a.grad_output, a.weight.sym_size(1));
}

at::Tensor masked_linear_grad_weight_meta(const MaskedLinearGradWeightArguments& a) {
  check_masked_linear_grad_weight(a);
  return at::empty_symint({a.grad_output.sym_size(-1), a.input.sym_size(-1)}, a.input.options());
}

template <c10::DeviceType device>
void register_autocast(torch::Library& m) {
  implement<masked_linear_autocast<device, MaskedLinearArguments>>(m);
  implement<masked_linear_autocast<device, MaskedLinearGradInputArguments>>(m);
  implement<masked_linear_autocast<device, MaskedLinearGradWeightArguments>>(m);
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Autograd, m) {
  implement<masked_linear_autograd>(m);
  implement<masked_linear_grad_input_autograd>(m);
  implement<masked_linear_grad_weight_autograd>(m);
}

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCPU, m) { register_autocast<c10::kCPU>(m); }
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCUDA, m) { register_autocast<c10::kCUDA>(m); }

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) {
  implement<masked_linear_meta>(m);
  implement<masked_linear_grad_input_meta>(m);
  implement<masked_linear_grad_weight_meta>(m);
}

}  // namespace ar_fast
