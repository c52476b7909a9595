// NADE: front doors, fake implementations, gradients, autocast.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "autograd.h"
#include "library.h"
#include "nade.h"

namespace ar_fast {

// ---------------------------------------------------------------- front doors

#define AR_FAST_DOOR(name) \
  c10::Dispatcher::singleton().findSchemaOrThrow(AR_FAST_OP(#name), "").typed<decltype(name)>()

at::Tensor nade(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                const OptionalTensor& activation_scale, std::string activation, std::string algorithm) {
  static const auto op = AR_FAST_DOOR(nade);
  return op.call(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale,
                 std::move(activation), std::move(algorithm));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> nade_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
    const at::Tensor& out_weight, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& activation_scale, std::string activation, bool needs_x,
    bool needs_activation_scale, std::string algorithm) {
  static const auto op = AR_FAST_DOOR(nade_backward);
  return op.call(grad, x, in_weight, in_bias, out_weight, order, in_offsets, out_offsets, activation_scale,
                 std::move(activation), needs_x, needs_activation_scale, std::move(algorithm));
}

at::Tensor nade_log_prob(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                         const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                         const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                         const OptionalTensor& activation_scale, std::string activation, std::string head,
                         int64_t levels, const OptionalTensor& head_kinds, bool per_variable, std::string algorithm) {
  static const auto op = AR_FAST_DOOR(nade_log_prob);
  return op.call(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale,
                 std::move(activation), std::move(head), levels, head_kinds, per_variable, std::move(algorithm));
}

std::tuple<at::Tensor, at::Tensor> nade_log_prob_forward(
    const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias, const at::Tensor& out_weight,
    const at::Tensor& out_bias, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& activation_scale, std::string activation, std::string head,
    int64_t levels, const OptionalTensor& head_kinds, bool per_variable, bool keep_parameters, std::string algorithm) {
  static const auto op = AR_FAST_DOOR(nade_log_prob_forward);
  return op.call(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale,
                 std::move(activation), std::move(head), levels, head_kinds, per_variable, keep_parameters,
                 std::move(algorithm));
}

namespace {

// ---------------------------------------------------------------- fake implementations

at::Tensor nade_meta(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                     const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                     const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                     const OptionalTensor& activation_scale, std::string activation, std::string /*algorithm*/) {
  parse_activation("nade", activation);
  check_nade("nade", x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale);
  return at::empty_symint({x.sym_size(0), out_weight.sym_size(0)}, compute_options(in_weight));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> nade_backward_meta(
    const at::Tensor& /*grad*/, const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
    const at::Tensor& out_weight, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& activation_scale, std::string /*activation*/,
    bool needs_x, bool needs_activation_scale, std::string /*algorithm*/) {
  check_nade("nade_backward", x, in_weight, in_bias, out_weight, at::Tensor(), order, in_offsets, out_offsets,
             activation_scale);
  const auto options = compute_options(in_weight);
  return {needs_x ? at::empty_symint(x.sym_sizes(), options) : at::empty({0}, options),
          at::empty_symint(in_weight.sym_sizes(), in_weight.options()),
          at::empty_symint(in_bias.sym_sizes(), options), at::empty_symint(out_weight.sym_sizes(), in_weight.options()),
          needs_activation_scale ? at::empty_symint({x.sym_size(1)}, options) : at::empty({0}, options)};
}

std::tuple<at::Tensor, at::Tensor> nade_log_prob_forward_meta(
    const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias, const at::Tensor& out_weight,
    const at::Tensor& out_bias, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& activation_scale, std::string activation, std::string head,
    int64_t levels, const OptionalTensor& head_kinds, bool per_variable, bool keep_parameters,
    std::string /*algorithm*/) {
  const char* op = "nade_log_prob";
  parse_activation(op, activation);
  check_nade(op, x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale);
  check_nade_head(op, x, out_weight, in_offsets, out_offsets, parse_head(op, head, levels, head_kinds), head_kinds);
  const auto options = compute_options(in_weight);
  return {per_variable ? at::empty_symint(x.sym_sizes(), options) : at::empty_symint({x.sym_size(0)}, options),
          keep_parameters ? at::empty_symint({x.sym_size(0), out_weight.sym_size(0)}, options)
                          : at::empty({0}, options)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> nade_sample_meta(const NadeSampleArguments& a) {
  parse_activation(NadeSampleArguments::op, a.activation);
  check_nade_sample(a);
  return empty_samples(a);
}

// ---------------------------------------------------------------- gradients

// The tensors that both backward passes need, in the order in which they are saved.
enum SavedIndex {
  kX,
  kInWeight,
  kInBias,
  kOutWeight,
  kOrder,
  kInOffsets,
  kOutOffsets,
  kActivationScale,
  kOutBias,
  kParameters,
  kHeadKinds
};

// Parameters of more than this are not kept for the backward pass but recomputed, some rows at a time.
constexpr int64_t kept_bytes = int64_t{64} << 20;

int64_t parameter_bytes(const at::Tensor& out_weight) {
  return out_weight.size(0) * static_cast<int64_t>(c10::elementSize(compute_type(out_weight.scalar_type())));
}

// In the compute type.
struct Gradients {
  at::Tensor x, in_weight, in_bias, out_weight, out_bias, activation_scale;

  void add(const Gradients& other) {
    in_weight.add_(other.in_weight);
    out_weight.add_(other.out_weight);
    out_bias.add_(other.out_bias);
    if (activation_scale.defined()) activation_scale.add_(other.activation_scale);
  }
};

// grad (B, R_out) of the parameters of the rows x, whose biases are in_bias.
Gradients parameter_gradients(torch::autograd::AutogradContext* ctx, const variable_list& saved, const at::Tensor& x,
                              const at::Tensor& in_bias, const at::Tensor& grad) {
  const bool needs_x = ctx->saved_data["needs_x"].toBool();
  const bool needs_scale = ctx->saved_data["needs_activation_scale"].toBool();
  auto [grad_x, grad_in_weight, grad_in_bias, grad_out_weight, grad_scale] =
      nade_backward(grad, x, saved[kInWeight], in_bias, saved[kOutWeight], or_none(saved[kOrder]),
                    or_none(saved[kInOffsets]), or_none(saved[kOutOffsets]), or_none(saved[kActivationScale]),
                    std::string(ctx->saved_data["activation"].toStringRef()), needs_x, needs_scale,
                    std::string(ctx->saved_data["algorithm"].toStringRef()));
  return {needs_x ? grad_x : at::Tensor(), grad_in_weight, grad_in_bias,
          grad_out_weight, grad.sum(0), needs_scale ? grad_scale : at::Tensor()};
}

void save_nade(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const OptionalTensor& activation_scale,
               const std::string& activation, const std::string& algorithm) {
  ctx->saved_data["needs_x"] = x.requires_grad();
  ctx->saved_data["needs_activation_scale"] = requires_grad(activation_scale);
  ctx->saved_data["activation"] = activation;
  ctx->saved_data["algorithm"] = algorithm;
}

// As autograd returns them: x, in_weight, in_bias, out_weight, out_bias, activation_scale, in their tensors' types.
variable_list finish(const char* op, const Gradients& g, const at::Tensor& grad, const variable_list& saved) {
  const auto type = saved[kInWeight].scalar_type();
  const auto typed = [](const at::Tensor& tensor, at::ScalarType to) {
    return tensor.defined() ? tensor.to(to) : at::Tensor();
  };
  return once_differentiable(op,
                             {typed(g.x, saved[kX].scalar_type()), typed(g.in_weight, type), typed(g.in_bias, type),
                              typed(g.out_weight, type), typed(g.out_bias, type), typed(g.activation_scale, type)},
                             {grad, saved[kX], saved[kInWeight], saved[kInBias], saved[kOutWeight]});
}

struct NadeFunction : torch::autograd::Function<NadeFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& in_weight,
                            const at::Tensor& in_bias, const at::Tensor& out_weight, const at::Tensor& out_bias,
                            const OptionalTensor& order, const OptionalTensor& in_offsets,
                            const OptionalTensor& out_offsets, const OptionalTensor& activation_scale,
                            std::string activation, std::string algorithm) {
    save_nade(ctx, x, activation_scale, activation, algorithm);
    ctx->save_for_backward({x, in_weight, in_bias, out_weight, or_undefined(order), or_undefined(in_offsets),
                            or_undefined(out_offsets), or_undefined(activation_scale)});
    at::AutoDispatchBelowADInplaceOrView guard;
    return nade(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale,
                std::move(activation), std::move(algorithm));
  }
  static variable_list backward(torch::autograd::AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto g = finish("nade", parameter_gradients(ctx, saved, saved[kX], saved[kInBias], grads[0]), grads[0], saved);
    return {g[0], g[1], g[2], g[3], g[4], at::Tensor(), at::Tensor(), at::Tensor(), g[5], at::Tensor(), at::Tensor()};
  }
};

at::Tensor nade_autograd(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                         const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                         const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                         const OptionalTensor& activation_scale, std::string activation, std::string algorithm) {
  if (needs_graph("nade", x, in_weight, in_bias, out_weight, out_bias, activation_scale)) {
    return NadeFunction::apply(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets,
                               activation_scale, std::move(activation), std::move(algorithm));
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return nade(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale,
              std::move(activation), std::move(algorithm));
}

// Gradients of the log-likelihood of the rows x, given their parameters.
Gradients log_prob_gradients(torch::autograd::AutogradContext* ctx, const variable_list& saved, const at::Tensor& x,
                             const at::Tensor& in_bias, const at::Tensor& parameters, const at::Tensor& grad) {
  auto [grad_parameters, grad_target] = head_log_prob_backward(
      grad, parameters, x, or_none(saved[kOutOffsets]), std::string(ctx->saved_data["head"].toStringRef()),
      ctx->saved_data["levels"].toInt(), or_none(saved[kHeadKinds]));
  Gradients g = parameter_gradients(ctx, saved, x, in_bias, grad_parameters);
  if (g.x.defined()) g.x = g.x + grad_target;
  return g;
}

// The same where the parameters of all rows are too many to keep.
Gradients recomputed_gradients(torch::autograd::AutogradContext* ctx, const variable_list& saved,
                               const at::Tensor& grad) {
  const at::Tensor &x = saved[kX], &in_bias = saved[kInBias];
  const int64_t batch = x.size(0), rows = std::max<int64_t>(1, kept_bytes / parameter_bytes(saved[kOutWeight]));
  const auto compute = compute_type(saved[kInWeight].scalar_type());
  Gradients total;
  variable_list grads_x, grads_in_bias;
  for (int64_t first = 0; first < batch; first += rows) {
    const int64_t count = std::min(rows, batch - first);
    const at::Tensor part = x.narrow(0, first, count);
    const at::Tensor bias = in_bias.dim() == 2 ? in_bias.narrow(0, first, count) : in_bias;
    const at::Tensor parameters =
        nade(part, saved[kInWeight], bias, saved[kOutWeight], saved[kOutBias], or_none(saved[kOrder]),
             or_none(saved[kInOffsets]), or_none(saved[kOutOffsets]), or_none(saved[kActivationScale]),
             std::string(ctx->saved_data["activation"].toStringRef()),
             std::string(ctx->saved_data["algorithm"].toStringRef()));
    Gradients g = log_prob_gradients(ctx, saved, part, bias, parameters, grad.narrow(0, first, count));
    grads_x.push_back(g.x);
    grads_in_bias.push_back(g.in_bias);
    // 16-bit gradients are added up in float32.
    g.in_weight = g.in_weight.to(compute);
    g.out_weight = g.out_weight.to(compute);
    if (first == 0) {
      total = g;
    } else {
      total.add(g);
    }
  }
  if (total.x.defined()) total.x = at::cat(grads_x);
  if (in_bias.dim() == 2) {
    total.in_bias = at::cat(grads_in_bias);
  } else {
    for (size_t i = 1; i < grads_in_bias.size(); ++i) total.in_bias.add_(grads_in_bias[i]);
  }
  return total;
}

struct NadeLogProbFunction : torch::autograd::Function<NadeLogProbFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& in_weight,
                            const at::Tensor& in_bias, const at::Tensor& out_weight, const at::Tensor& out_bias,
                            const OptionalTensor& order, const OptionalTensor& in_offsets,
                            const OptionalTensor& out_offsets, const OptionalTensor& activation_scale,
                            std::string activation, std::string head, int64_t levels, const OptionalTensor& head_kinds,
                            bool per_variable, std::string algorithm) {
    save_nade(ctx, x, activation_scale, activation, algorithm);
    ctx->saved_data["head"] = head;
    ctx->saved_data["levels"] = levels;
    at::AutoDispatchBelowADInplaceOrView guard;
    const bool keep = x.sym_size(0) * parameter_bytes(out_weight) <= kept_bytes;
    auto [log_prob, parameters] = nade_log_prob_forward(
        x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale,
        std::move(activation), std::move(head), levels, head_kinds, per_variable, keep, std::move(algorithm));
    ctx->save_for_backward({x, in_weight, in_bias, out_weight, or_undefined(order), or_undefined(in_offsets),
                            or_undefined(out_offsets), or_undefined(activation_scale), out_bias,
                            keep ? parameters : at::Tensor(), or_undefined(head_kinds)});
    return log_prob;
  }
  static variable_list backward(torch::autograd::AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    Gradients g;
    {
      at::AutoGradMode no_graph(false);
      g = saved[kParameters].defined()
              ? log_prob_gradients(ctx, saved, saved[kX], saved[kInBias], saved[kParameters], grads[0])
              : recomputed_gradients(ctx, saved, grads[0]);
    }
    const auto list = finish("nade_log_prob", g, grads[0], saved);
    return {list[0], list[1],      list[2],      list[3],      list[4],      at::Tensor(), at::Tensor(), at::Tensor(),
            list[5], at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor nade_log_prob_autograd(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                                  const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                                  const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                                  const OptionalTensor& activation_scale, std::string activation, std::string head,
                                  int64_t levels, const OptionalTensor& head_kinds, bool per_variable,
                                  std::string algorithm) {
  if (needs_graph("nade_log_prob", x, in_weight, in_bias, out_weight, out_bias, activation_scale)) {
    return NadeLogProbFunction::apply(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets,
                                      activation_scale, std::move(activation), std::move(head), levels, head_kinds,
                                      per_variable, std::move(algorithm));
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return nade_log_prob(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale,
                       std::move(activation), std::move(head), levels, head_kinds, per_variable, std::move(algorithm));
}

// Below autograd nade_log_prob is its forward without the parameters.
at::Tensor nade_log_prob_below_autograd(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                                        const at::Tensor& out_weight, const at::Tensor& out_bias,
                                        const OptionalTensor& order, const OptionalTensor& in_offsets,
                                        const OptionalTensor& out_offsets, const OptionalTensor& activation_scale,
                                        std::string activation, std::string head, int64_t levels,
                                        const OptionalTensor& head_kinds, bool per_variable, std::string algorithm) {
  return std::get<0>(nade_log_prob_forward(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets,
                                           activation_scale, std::move(activation), std::move(head), levels, head_kinds,
                                           per_variable, /*keep_parameters=*/false, std::move(algorithm)));
}

// ---------------------------------------------------------------- autocast: float32, 16-bit storage stays

at::Tensor widest(const at::Tensor& tensor, at::ScalarType type) {
  return at::isFloatingType(tensor.scalar_type()) && tensor.scalar_type() != at::kDouble ? tensor.to(type) : tensor;
}

OptionalTensor widest(const OptionalTensor& tensor, at::ScalarType type) {
  return tensor.has_value() ? OptionalTensor(widest(*tensor, type)) : tensor;
}

at::Tensor nade_autocast(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                         const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                         const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                         const OptionalTensor& activation_scale, std::string activation, std::string algorithm) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  const auto type = in_weight.scalar_type();
  return nade(widest(x, compute_type(type)), in_weight, widest(in_bias, type), widest(out_weight, type),
              widest(out_bias, type), order, in_offsets, out_offsets, widest(activation_scale, type),
              std::move(activation), std::move(algorithm));
}

at::Tensor nade_log_prob_autocast(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                                  const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                                  const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                                  const OptionalTensor& activation_scale, std::string activation, std::string head,
                                  int64_t levels, const OptionalTensor& head_kinds, bool per_variable,
                                  std::string algorithm) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  const auto type = in_weight.scalar_type();
  return nade_log_prob(widest(x, compute_type(type)), in_weight, widest(in_bias, type), widest(out_weight, type),
                       widest(out_bias, type), order, in_offsets, out_offsets, widest(activation_scale, type),
                       std::move(activation), std::move(head), levels, head_kinds, per_variable, std::move(algorithm));
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) {
  m.impl("nade", nade_meta);
  m.impl("nade_backward", nade_backward_meta);
  m.impl("nade_log_prob_forward", nade_log_prob_forward_meta);
  implement<nade_sample_meta>(m);
  m.impl("nade_log_prob", nade_log_prob_below_autograd);
}

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { m.impl("nade_log_prob", nade_log_prob_below_autograd); }
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CUDA, m) { m.impl("nade_log_prob", nade_log_prob_below_autograd); }

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Autograd, m) {
  m.impl("nade", nade_autograd);
  m.impl("nade_log_prob", nade_log_prob_autograd);
}

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCPU, m) {
  m.impl("nade", nade_autocast);
  m.impl("nade_log_prob", nade_log_prob_autocast);
}
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCUDA, m) {
  m.impl("nade", nade_autocast);
  m.impl("nade_log_prob", nade_log_prob_autocast);
}

}  // namespace ar_fast
