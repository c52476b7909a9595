#include "masked_linear.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/flatten.h>
#include <ATen/ops/sum.h>

#include "../kernels/masked_linear.h"
#include "activation.h"
#include "autograd.h"
#include "library.h"

namespace ar_fast {
namespace {

constexpr const char* forward_name = "masked_linear";
constexpr const char* grad_input_name = "masked_linear_grad_input";
constexpr const char* grad_weight_name = "masked_linear_grad_weight";

void check_algorithm_name(const char* op, std::string_view algorithm) {
  TORCH_CHECK(algorithm == "auto" || algorithm == "panels" || algorithm == "fused" || algorithm == "dense", op,
              ": algorithm must be one of auto, panels, fused, dense, got '", algorithm, "'");
}

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

// A matrix of rows (..., features) in front of a weight.
void check_rows(const char* op, const char* name, const at::Tensor& tensor, const c10::SymInt& features,
                const char* of) {
  TORCH_CHECK(tensor.dim() >= 1, op, ": ", name, " must have at least one dimension, got a scalar");
  TORCH_CHECK(tensor.sym_size(-1) == features, op, ": ", name, " must have shape (..., ", features, ") to match ", of,
              ", got ", tensor.sym_sizes());
}

}  // namespace

void check_masked_linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                         const MaskTensors& mask, std::string_view algorithm) {
  const char* op = forward_name;
  check_algorithm_name(op, algorithm);
  check_dim(op, "weight", weight, 2, "(O, I)");
  check_floating(op, "weight", weight);
  check_rows(op, "input", input, weight.sym_size(1), "weight");
  check_same_dtype(op, "input", input, "weight", weight);
  check_same_device(op, "input", input, "weight", weight);
  if (given(bias)) {
    check_dim(op, "bias", *bias, 1, "(O)");
    check_size(op, "bias", *bias, 0, weight.sym_size(0), "elements");
    check_same_dtype(op, "bias", *bias, "weight", weight);
    check_same_device(op, "bias", *bias, "weight", weight);
  }
  check_mask(op, mask, weight.sym_size(0), weight.sym_size(1), weight);
}

void check_masked_linear_grad_input(const at::Tensor& grad_output, const at::Tensor& weight, const MaskTensors& mask,
                                    std::string_view algorithm) {
  const char* op = grad_input_name;
  check_algorithm_name(op, algorithm);
  check_dim(op, "weight", weight, 2, "(O, I)");
  check_floating(op, "weight", weight);
  check_rows(op, "grad_output", grad_output, weight.sym_size(0), "weight");
  check_same_dtype(op, "grad_output", grad_output, "weight", weight);
  check_same_device(op, "grad_output", grad_output, "weight", weight);
  check_mask(op, mask, weight.sym_size(0), weight.sym_size(1), weight);
}

void check_masked_linear_grad_weight(const at::Tensor& grad_output, const at::Tensor& input, const MaskTensors& mask,
                                     std::string_view algorithm) {
  const char* op = grad_weight_name;
  check_algorithm_name(op, algorithm);
  check_floating(op, "input", input);
  TORCH_CHECK(input.dim() >= 1, op, ": input must have at least one dimension, got a scalar");
  TORCH_CHECK(grad_output.dim() == input.dim() &&
                  grad_output.sym_sizes().slice(0, input.dim() - 1) == input.sym_sizes().slice(0, input.dim() - 1),
              op, ": grad_output must have input's shape but for the last dimension, ", input.sym_sizes(), ", got ",
              grad_output.sym_sizes());
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  check_same_device(op, "grad_output", grad_output, "input", input);
  check_mask(op, mask, grad_output.sym_size(-1), input.sym_size(-1), input);
}

at::Tensor masked_linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& extents, const OptionalTensor& rows, const OptionalTensor& columns,
                         const OptionalTensor& tiles, const OptionalTensor& dense, std::string_view algorithm,
                         std::optional<std::string_view> activation) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(AR_FAST_OP("masked_linear"), "")
                             .typed<decltype(masked_linear)>();
  return op.call(input, weight, bias, extents, rows, columns, tiles, dense, algorithm, activation);
}

namespace {

using GradOp = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                          const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, std::string_view);

}  // namespace

at::Tensor masked_linear_grad_input(const at::Tensor& grad_output, const at::Tensor& weight,
                                    const OptionalTensor& extents, const OptionalTensor& rows,
                                    const OptionalTensor& columns, const OptionalTensor& tiles,
                                    const OptionalTensor& dense, std::string_view algorithm) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(AR_FAST_OP("masked_linear_grad_input"), "")
                             .typed<GradOp>();
  return op.call(grad_output, weight, extents, rows, columns, tiles, dense, algorithm);
}

at::Tensor masked_linear_grad_weight(const at::Tensor& grad_output, const at::Tensor& input,
                                     const OptionalTensor& extents, const OptionalTensor& rows,
                                     const OptionalTensor& columns, const OptionalTensor& tiles,
                                     const OptionalTensor& dense, std::string_view algorithm) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(AR_FAST_OP("masked_linear_grad_weight"), "")
                             .typed<GradOp>();
  return op.call(grad_output, input, extents, rows, columns, tiles, dense, algorithm);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The mask and the algorithm, kept beside two operands, and perhaps the result, from forward to backward.
void save(AutogradContext* context, const at::Tensor& first, const at::Tensor& second, const MaskTensors& mask,
          std::string_view algorithm, const at::Tensor& result = at::Tensor()) {
  context->save_for_backward({first, second, or_undefined(mask.extents), or_undefined(mask.rows),
                              or_undefined(mask.columns), or_undefined(mask.tiles), or_undefined(mask.dense), result});
  context->saved_data["algorithm"] = std::string(algorithm);
}

struct Saved {
  explicit Saved(AutogradContext* context) : algorithm(context->saved_data["algorithm"].toStringRef()) {
    const variable_list saved = context->get_saved_variables();
    first = saved[0];
    second = saved[1];
    extents = or_none(saved[2]);
    rows = or_none(saved[3]);
    columns = or_none(saved[4]);
    tiles = or_none(saved[5]);
    dense = or_none(saved[6]);
    result = saved[7];
  }
  at::Tensor forward(const at::Tensor& input, const at::Tensor& weight) const {
    return masked_linear(input, weight, std::nullopt, extents, rows, columns, tiles, dense, algorithm, std::nullopt);
  }
  at::Tensor grad_input(const at::Tensor& grad_output, const at::Tensor& weight) const {
    return masked_linear_grad_input(grad_output, weight, extents, rows, columns, tiles, dense, algorithm);
  }
  at::Tensor grad_weight(const at::Tensor& grad_output, const at::Tensor& input) const {
    return masked_linear_grad_weight(grad_output, input, extents, rows, columns, tiles, dense, algorithm);
  }
  at::Tensor first, second, result;
  OptionalTensor extents, rows, columns, tiles, dense;
  std::string algorithm;
};

// With an activation whose derivative the result tells, or none.
class MaskedLinearFunction : public torch::autograd::Function<MaskedLinearFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const at::Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& extents, const OptionalTensor& rows,
                            const OptionalTensor& columns, const OptionalTensor& tiles, const OptionalTensor& dense,
                            std::string_view algorithm, std::optional<std::string_view> activation) {
    at::Tensor y;
    {
      at::AutoDispatchBelowADInplaceOrView guard;
      y = masked_linear(input, weight, bias, extents, rows, columns, tiles, dense, algorithm, activation);
    }
    const MlpActivation f = parse_mlp_activation(forward_name, activation);
    save(context, input, weight, {extents, rows, columns, tiles, dense}, algorithm,
         f == MlpActivation::none ? at::Tensor() : y);
    context->saved_data["bias"] = given(bias) && bias->requires_grad();
    context->saved_data["activation"] = static_cast<int64_t>(f);
    return y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list out(10);
    if (!grads[0].defined()) return out;
    const Saved saved(context);
    const auto f = static_cast<MlpActivation>(context->saved_data["activation"].toInt());
    const at::Tensor grad = activate_backward(f, grads[0], saved.result);
    if (context->needs_input_grad(0)) out[0] = saved.grad_input(grad, saved.second);
    if (context->needs_input_grad(1)) out[1] = saved.grad_weight(grad, saved.first);
    if (context->saved_data["bias"].toBool()) {
      out[2] = grad.dim() == 1 ? grad : at::flatten(grad, 0, -2).sum(0);
    }
    return out;
  }
};

// dX = dY (W * M): linear in dY and in W.
class GradInputFunction : public torch::autograd::Function<GradInputFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& grad_output, const at::Tensor& weight,
                            const OptionalTensor& extents, const OptionalTensor& rows, const OptionalTensor& columns,
                            const OptionalTensor& tiles, const OptionalTensor& dense, std::string_view algorithm) {
    save(context, grad_output, weight, {extents, rows, columns, tiles, dense}, algorithm);
    at::AutoDispatchBelowADInplaceOrView guard;
    return masked_linear_grad_input(grad_output, weight, extents, rows, columns, tiles, dense, algorithm);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list out(8);
    if (!grads[0].defined()) return out;
    const Saved saved(context);
    if (context->needs_input_grad(0)) out[0] = saved.forward(grads[0], saved.second);
    if (context->needs_input_grad(1)) out[1] = saved.grad_weight(saved.first, grads[0]);
    return out;
  }
};

// dW = (dY^T X) * M: linear in dY and in X.
class GradWeightFunction : public torch::autograd::Function<GradWeightFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& grad_output, const at::Tensor& input,
                            const OptionalTensor& extents, const OptionalTensor& rows, const OptionalTensor& columns,
                            const OptionalTensor& tiles, const OptionalTensor& dense, std::string_view algorithm) {
    save(context, grad_output, input, {extents, rows, columns, tiles, dense}, algorithm);
    at::AutoDispatchBelowADInplaceOrView guard;
    return masked_linear_grad_weight(grad_output, input, extents, rows, columns, tiles, dense, algorithm);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list out(8);
    if (!grads[0].defined()) return out;
    const Saved saved(context);
    if (context->needs_input_grad(0)) out[0] = saved.forward(saved.second, grads[0]);
    if (context->needs_input_grad(1)) out[1] = saved.grad_input(saved.first, grads[0]);
    return out;
  }
};

at::Tensor masked_linear_autograd(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                                  const OptionalTensor& extents, const OptionalTensor& rows,
                                  const OptionalTensor& columns, const OptionalTensor& tiles,
                                  const OptionalTensor& dense, std::string_view algorithm,
                                  std::optional<std::string_view> activation) {
  if (!needs_graph(forward_name, input, weight, bias)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return masked_linear(input, weight, bias, extents, rows, columns, tiles, dense, algorithm, activation);
  }
  const MlpActivation f = parse_mlp_activation(forward_name, activation);
  if (derivative_from_result(f)) {
    return MaskedLinearFunction::apply(input, weight, bias, extents, rows, columns, tiles, dense, algorithm,
                                       activation);
  }
  return activate(f, MaskedLinearFunction::apply(input, weight, bias, extents, rows, columns, tiles, dense, algorithm,
                                                 std::nullopt));
}

at::Tensor masked_linear_grad_input_autograd(const at::Tensor& grad_output, const at::Tensor& weight,
                                             const OptionalTensor& extents, const OptionalTensor& rows,
                                             const OptionalTensor& columns, const OptionalTensor& tiles,
                                             const OptionalTensor& dense, std::string_view algorithm) {
  if (!needs_graph("masked_linear_grad_input", grad_output, weight)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return masked_linear_grad_input(grad_output, weight, extents, rows, columns, tiles, dense, algorithm);
  }
  return GradInputFunction::apply(grad_output, weight, extents, rows, columns, tiles, dense, algorithm);
}

at::Tensor masked_linear_grad_weight_autograd(const at::Tensor& grad_output, const at::Tensor& input,
                                              const OptionalTensor& extents, const OptionalTensor& rows,
                                              const OptionalTensor& columns, const OptionalTensor& tiles,
                                              const OptionalTensor& dense, std::string_view algorithm) {
  if (!needs_graph("masked_linear_grad_weight", grad_output, input)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return masked_linear_grad_weight(grad_output, input, extents, rows, columns, tiles, dense, algorithm);
  }
  return GradWeightFunction::apply(grad_output, input, extents, rows, columns, tiles, dense, algorithm);
}

// Autocast follows F.linear: operands in the autocast type.
template <c10::DeviceType device>
struct Autocast {
  static at::Tensor cast(const at::Tensor& tensor) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
  }
  static at::Tensor forward(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& extents, const OptionalTensor& rows, const OptionalTensor& columns,
                            const OptionalTensor& tiles, const OptionalTensor& dense, std::string_view algorithm,
                            std::optional<std::string_view> activation) {
    c10::impl::ExcludeDispatchKeyGuard guard(at::autocast::get_autocast_dispatch_key_from_device_type(device));
    const OptionalTensor cast_bias = given(bias) ? OptionalTensor(cast(*bias)) : std::nullopt;
    return masked_linear(cast(input), cast(weight), cast_bias, extents, rows, columns, tiles, dense, algorithm,
                         activation);
  }
  template <GradOp op>
  static at::Tensor grad(const at::Tensor& first, const at::Tensor& second, const OptionalTensor& extents,
                         const OptionalTensor& rows, const OptionalTensor& columns, const OptionalTensor& tiles,
                         const OptionalTensor& dense, std::string_view algorithm) {
    c10::impl::ExcludeDispatchKeyGuard guard(at::autocast::get_autocast_dispatch_key_from_device_type(device));
    return op(cast(first), cast(second), extents, rows, columns, tiles, dense, algorithm);
  }
};

at::Tensor empty_rows(const at::Tensor& rows, const c10::SymInt& features) {
  c10::SymDimVector sizes(rows.sym_sizes().begin(), rows.sym_sizes().end());
  sizes.back() = features;
  return at::empty_symint(sizes, rows.options());
}

at::Tensor masked_linear_meta(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& extents, const OptionalTensor& rows,
                              const OptionalTensor& columns, const OptionalTensor& tiles, const OptionalTensor& dense,
                              std::string_view algorithm, std::optional<std::string_view> activation) {
  parse_mlp_activation(forward_name, activation);
  check_masked_linear(input, weight, bias, {extents, rows, columns, tiles, dense}, algorithm);
  return empty_rows(input, weight.sym_size(0));
}

at::Tensor masked_linear_grad_input_meta(const at::Tensor& grad_output, const at::Tensor& weight,
                                         const OptionalTensor& extents, const OptionalTensor& rows,
                                         const OptionalTensor& columns, const OptionalTensor& tiles,
                                         const OptionalTensor& dense, std::string_view algorithm) {
  check_masked_linear_grad_input(grad_output, weight, {extents, rows, columns, tiles, dense}, algorithm);
  return empty_rows(grad_output, weight.sym_size(1));
}

at::Tensor masked_linear_grad_weight_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                          const OptionalTensor& extents, const OptionalTensor& rows,
                                          const OptionalTensor& columns, const OptionalTensor& tiles,
                                          const OptionalTensor& dense, std::string_view algorithm) {
  check_masked_linear_grad_weight(grad_output, input, {extents, rows, columns, tiles, dense}, algorithm);
  return at::empty_symint({grad_output.sym_size(-1), input.sym_size(-1)}, input.options());
}

template <c10::DeviceType device>
void register_autocast(torch::Library& m) {
  m.impl("masked_linear", TORCH_FN(Autocast<device>::forward));
  m.impl("masked_linear_grad_input", TORCH_FN((Autocast<device>::template grad<masked_linear_grad_input>)));
  m.impl("masked_linear_grad_weight", TORCH_FN((Autocast<device>::template grad<masked_linear_grad_weight>)));
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Autograd, m) {
  m.impl("masked_linear", TORCH_FN(masked_linear_autograd));
  m.impl("masked_linear_grad_input", TORCH_FN(masked_linear_grad_input_autograd));
  m.impl("masked_linear_grad_weight", TORCH_FN(masked_linear_grad_weight_autograd));
}

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCPU, m) { register_autocast<c10::kCPU>(m); }
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCUDA, m) { register_autocast<c10::kCUDA>(m); }

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) {
  m.impl("masked_linear", TORCH_FN(masked_linear_meta));
  m.impl("masked_linear_grad_input", TORCH_FN(masked_linear_grad_input_meta));
  m.impl("masked_linear_grad_weight", TORCH_FN(masked_linear_grad_weight_meta));
}

}  // namespace ar_fast
