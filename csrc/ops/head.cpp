#include "head.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>

#include <utility>

#include "autograd.h"
#include "library.h"

namespace ar_fast {

// ---------------------------------------------------------------- checks

namespace {

Head parse_one_head(const char* op, std::string_view name, int64_t levels, const char* others) {
  static const std::pair<const char*, HeadKind> kinds[] = {{"bernoulli", HeadKind::bernoulli},
                                                           {"categorical", HeadKind::categorical},
                                                           {"gaussian_mixture", HeadKind::gaussian_mixture},
                                                           {"logistic_mixture", HeadKind::logistic_mixture}};
  for (const auto& [known, kind] : kinds) {
    if (name != known) continue;
    const bool discretised = kind == HeadKind::logistic_mixture;
    TORCH_CHECK(discretised ? levels >= 2 : levels == 0, op, ": levels must be ",
                discretised ? "at least 2 for logistic_mixture" : "0 but for logistic_mixture", ", got ", levels);
    return {kind, levels};
  }
  TORCH_CHECK(false, op, ": head must be bernoulli, categorical, gaussian_mixture", others, ", got '", name, "'");
}

}  // namespace

Head parse_head(const char* op, std::string_view name, int64_t levels) {
  return parse_one_head(op, name, levels, " or logistic_mixture");
}

Head parse_head(const char* op, std::string_view name, int64_t levels, const OptionalTensor& head_kinds) {
  const bool per_variable = name == "per_variable";
  TORCH_CHECK(per_variable == head_kinds.has_value(), op, ": head_kinds must be given for a per_variable head and for ",
              "no other, got ", head_kinds.has_value() ? "some" : "none", " for '", name, "'");
  if (!per_variable) return parse_one_head(op, name, levels, ", logistic_mixture or per_variable");
  TORCH_CHECK(levels == 0, op, ": levels must be 0 but for logistic_mixture, got ", levels);
  return {HeadKind::per_variable, 0};
}

Head with_kinds(Head head, const OptionalTensor& head_kinds, at::Tensor& kept) {
  if (!head_kinds.has_value()) return head;
  kept = head_kinds->contiguous();
  head.kinds = kept.const_data_ptr<int64_t>();
  return head;
}

void check_head_kinds(const char* op, const OptionalTensor& head_kinds, const c10::SymInt& variables,
                      const char* other_name, const at::Tensor& other) {
  if (!head_kinds.has_value()) return;
  check_dim(op, "head_kinds", *head_kinds, 2, "(D, 2)");
  check_size(op, "head_kinds", *head_kinds, 0, variables, "rows, one per variable,");
  check_size(op, "head_kinds", *head_kinds, 1, 2, "columns, kind and levels,");
  check_dtype(op, "head_kinds", *head_kinds, at::kLong);
  check_same_device(op, "head_kinds", *head_kinds, other_name, other);
}

void check_in_offsets(const char* op, const Head& head, const OptionalTensor& in_offsets, const c10::SymInt& variables,
                      const char* other_name, const at::Tensor& other) {
  TORCH_CHECK(in_offsets.has_value() == (head.kind == HeadKind::per_variable), op,
              ": in_offsets must be given for a per_variable head and for no other, got ",
              in_offsets.has_value() ? "some" : "none");
  if (!in_offsets.has_value()) return;
  check_dim(op, "in_offsets", *in_offsets, 1, "(D + 1)");
  check_size(op, "in_offsets", *in_offsets, 0, variables + 1, "entries, one more than the variables,");
  check_dtype(op, "in_offsets", *in_offsets, at::kLong);
  check_same_device(op, "in_offsets", *in_offsets, other_name, other);
}

void check_head_rows(const char* op, const Head& head, const char* owner, const c10::SymInt& rows,
                     const c10::SymInt& variables, const OptionalTensor& offsets) {
  switch (head.kind) {
    case HeadKind::bernoulli:
      TORCH_CHECK(rows == variables, op, ": ", owner, " must have one row per variable, ", variables,
                  ", for a bernoulli head, got ", rows);
      return;
    case HeadKind::categorical:
    case HeadKind::per_variable: return;
    default:
      TORCH_CHECK(offsets.has_value() ? rows % 3 == 0 : rows % (variables * 3) == 0, op, ": ", owner,
                  " must have 3 K rows per variable (logits, means, log-scales) for a mixture head, got ", rows,
                  " for ", variables, " variables");
  }
}

void check_head_log_prob(const char* op, const at::Tensor& parameters, const at::Tensor& x,
                         const OptionalTensor& offsets, const Head& head, const OptionalTensor& head_kinds) {
  check_dim(op, "parameters", parameters, 2, "(B, R_out)");
  TORCH_CHECK(parameters.scalar_type() == at::kFloat || parameters.scalar_type() == at::kDouble, op,
              ": parameters must be float32 or float64, got ", dtype_name(parameters.scalar_type()));
  check_dim(op, "x", x, 2, "(B, D)");
  check_size(op, "x", x, 0, parameters.sym_size(0), "rows, as parameters has,");
  check_same_device(op, "x", x, "parameters", parameters);
  TORCH_CHECK(!x.is_complex(), op, ": x must be real, got ", dtype_name(x.scalar_type()));
  const c10::SymInt variables = x.sym_size(1), rows = parameters.sym_size(1);
  TORCH_CHECK(variables > 0, op, ": x must have at least one variable, got shape ", x.sym_sizes());
  if (offsets.has_value()) {
    check_dim(op, "offsets", *offsets, 1, "(D + 1)");
    check_size(op, "offsets", *offsets, 0, variables + 1, "entries, one more than the variables,");
    check_dtype(op, "offsets", *offsets, at::kLong);
    check_same_device(op, "offsets", *offsets, "parameters", parameters);
  } else {
    TORCH_CHECK(rows % variables == 0 && rows > 0, op, ": parameters must have a multiple of D = ", variables,
                " columns unless offsets is given, got shape ", parameters.sym_sizes());
  }
  check_head_rows(op, head, "parameters", rows, variables, offsets);
  check_head_kinds(op, head_kinds, variables, "parameters", parameters);
}

// ---------------------------------------------------------------- preparation

HeadTensors prepare_head(const at::Tensor& parameters, const at::Tensor& x, const OptionalTensor& offsets,
                         const Head& head, const OptionalTensor& head_kinds) {
  HeadTensors t;
  t.parameters = parameters.contiguous();
  t.x = x.to(parameters.scalar_type()).contiguous();
  if (offsets.has_value()) t.offsets = offsets->contiguous();
  t.rows = {storage_type(parameters.scalar_type()),
            with_kinds(head, head_kinds, t.head_kinds),
            x.size(0),
            x.size(1),
            parameters.size(1),
            t.offsets.defined() ? t.offsets.const_data_ptr<int64_t>() : nullptr,
            t.parameters.const_data_ptr(),
            t.x.const_data_ptr()};
  return t;
}

at::Tensor prepare_head_grad(const HeadTensors& t, const at::Tensor& grad) {
  TORCH_CHECK(grad.dim() == 1 || grad.dim() == 2, "head_log_prob_backward: grad must have shape (B) or (B, D), got ",
              grad.sizes());
  TORCH_CHECK(grad.size(0) == t.rows.batch && (grad.dim() == 1 || grad.size(1) == t.rows.variables),
              "head_log_prob_backward: grad must have shape (B) or (B, D) with B = ", t.rows.batch,
              ", D = ", t.rows.variables, ", got ", grad.sizes());
  return grad.to(t.parameters.scalar_type()).contiguous();
}

// ---------------------------------------------------------------- front doors

at::Tensor head_log_prob(const at::Tensor& parameters, const at::Tensor& x, const OptionalTensor& offsets,
                         std::string head, int64_t levels, const OptionalTensor& head_kinds) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(AR_FAST_OP("head_log_prob"), "")
                             .typed<decltype(head_log_prob)>();
  return op.call(parameters, x, offsets, std::move(head), levels, head_kinds);
}

std::tuple<at::Tensor, at::Tensor> head_log_prob_backward(const at::Tensor& grad, const at::Tensor& parameters,
                                                          const at::Tensor& x, const OptionalTensor& offsets,
                                                          std::string head, int64_t levels,
                                                          const OptionalTensor& head_kinds) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow(AR_FAST_OP("head_log_prob_backward"), "")
                             .typed<decltype(head_log_prob_backward)>();
  return op.call(grad, parameters, x, offsets, std::move(head), levels, head_kinds);
}

namespace {

// ---------------------------------------------------------------- fake implementations

at::Tensor head_log_prob_meta(const at::Tensor& parameters, const at::Tensor& x, const OptionalTensor& offsets,
                              std::string head, int64_t levels, const OptionalTensor& head_kinds) {
  check_head_log_prob("head_log_prob", parameters, x, offsets, parse_head("head_log_prob", head, levels, head_kinds),
                      head_kinds);
  return at::empty_symint(x.sym_sizes(), parameters.options());
}

std::tuple<at::Tensor, at::Tensor> head_log_prob_backward_meta(const at::Tensor& /*grad*/, const at::Tensor& parameters,
                                                               const at::Tensor& x, const OptionalTensor& offsets,
                                                               std::string head, int64_t levels,
                                                               const OptionalTensor& head_kinds) {
  const char* op = "head_log_prob_backward";
  check_head_log_prob(op, parameters, x, offsets, parse_head(op, head, levels, head_kinds), head_kinds);
  return {at::empty_symint(parameters.sym_sizes(), parameters.options()),
          at::empty_symint(x.sym_sizes(), parameters.options())};
}

// ---------------------------------------------------------------- gradient

struct HeadLogProbFunction : torch::autograd::Function<HeadLogProbFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& parameters, const at::Tensor& x,
                            const OptionalTensor& offsets, std::string head, int64_t levels,
                            const OptionalTensor& head_kinds) {
    ctx->save_for_backward({parameters, x, or_undefined(offsets), or_undefined(head_kinds)});
    ctx->saved_data["head"] = head;
    ctx->saved_data["levels"] = levels;
    at::AutoDispatchBelowADInplaceOrView guard;
    return head_log_prob(parameters, x, offsets, std::move(head), levels, head_kinds);
  }
  static variable_list backward(torch::autograd::AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    auto [grad_parameters, grad_x] = head_log_prob_backward(grads[0], saved[0], saved[1], or_none(saved[2]),
                                                            std::string(ctx->saved_data["head"].toStringRef()),
                                                            ctx->saved_data["levels"].toInt(), or_none(saved[3]));
    variable_list g{grad_parameters, saved[1].requires_grad() ? grad_x.to(saved[1].scalar_type()) : at::Tensor()};
    g = once_differentiable("head_log_prob", std::move(g), {grads[0], saved[0], saved[1]});
    return {g[0], g[1], at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor head_log_prob_autograd(const at::Tensor& parameters, const at::Tensor& x, const OptionalTensor& offsets,
                                  std::string head, int64_t levels, const OptionalTensor& head_kinds) {
  if (needs_graph("head_log_prob", parameters, x))
    return HeadLogProbFunction::apply(parameters, x, offsets, std::move(head), levels, head_kinds);
  at::AutoDispatchBelowADInplaceOrView guard;
  return head_log_prob(parameters, x, offsets, std::move(head), levels, head_kinds);
}

// ---------------------------------------------------------------- autocast: float32, whatever made the parameters

at::Tensor head_log_prob_autocast(const at::Tensor& parameters, const at::Tensor& x, const OptionalTensor& offsets,
                                  std::string head, int64_t levels, const OptionalTensor& head_kinds) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  return head_log_prob(parameters.to(compute_type(parameters.scalar_type())), x, offsets, std::move(head), levels,
                       head_kinds);
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) {
  m.impl("head_log_prob", head_log_prob_meta);
  m.impl("head_log_prob_backward", head_log_prob_backward_meta);
}
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Autograd, m) { m.impl("head_log_prob", head_log_prob_autograd); }
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCPU, m) { m.impl("head_log_prob", head_log_prob_autocast); }
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCUDA, m) { m.impl("head_log_prob", head_log_prob_autocast); }

}  // namespace ar_fast
