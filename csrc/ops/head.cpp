#include "head.h"

#include <ATen/ops/empty.h>

#include <utility>

#include "autograd.h"

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
                discretised ? "at least 2 for logistic_mixture" : "0 except for logistic_mixture", ", got ", levels);
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
  TORCH_CHECK(levels == 0, op, ": levels must be 0 except for logistic_mixture, got ", levels);
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

namespace {

template <typename Arguments>
Head check_head_log_prob(const Arguments& a) {
  const char* op = Arguments::op;
  const Head head = parse_head(op, a.head, a.levels, a.head_kinds);
  check_dim(op, "parameters", a.parameters, 2, "(B, R_out)");
  TORCH_CHECK(a.parameters.scalar_type() == at::kFloat || a.parameters.scalar_type() == at::kDouble, op,
              ": parameters must be float32 or float64, got ", dtype_name(a.parameters.scalar_type()));
  check_dim(op, "x", a.x, 2, "(B, D)");
  check_size(op, "x", a.x, 0, a.parameters.sym_size(0), "rows, as parameters has,");
  check_same_device(op, "x", a.x, "parameters", a.parameters);
  TORCH_CHECK(!a.x.is_complex(), op, ": x must be real, got ", dtype_name(a.x.scalar_type()));
  const c10::SymInt variables = a.x.sym_size(1), rows = a.parameters.sym_size(1);
  TORCH_CHECK(variables > 0, op, ": x must have at least one variable, got shape ", a.x.sym_sizes());
  if (a.offsets.has_value()) {
    check_dim(op, "offsets", *a.offsets, 1, "(D + 1)");
    check_size(op, "offsets", *a.offsets, 0, variables + 1, "entries, one more than the variables,");
    check_dtype(op, "offsets", *a.offsets, at::kLong);
    check_same_device(op, "offsets", *a.offsets, "parameters", a.parameters);
  } else {
    TORCH_CHECK(rows % variables == 0 && rows > 0, op, ": parameters must have a multiple of D = ", variables,
                " columns unless offsets is given, got shape ", a.parameters.sym_sizes());
  }
  check_head_rows(op, head, "parameters", rows, variables, a.offsets);
  check_head_kinds(op, a.head_kinds, variables, "parameters", a.parameters);
  return head;
}

}  // namespace

// ---------------------------------------------------------------- preparation

template <typename Arguments>
HeadTensors prepare_head(const Arguments& a) {
  const Head head = check_head_log_prob(a);
  HeadTensors t;
  t.parameters = a.parameters.contiguous();
  t.x = a.x.to(a.parameters.scalar_type()).contiguous();
  t.offsets = contiguous_or_undefined(a.offsets);
  t.rows = {storage_type(a.parameters.scalar_type()),
            with_kinds(head, a.head_kinds, t.head_kinds),
            a.x.size(0),
            a.x.size(1),
            a.parameters.size(1),
            t.offsets.defined() ? t.offsets.const_data_ptr<int64_t>() : nullptr,
            t.parameters.const_data_ptr(),
            t.x.const_data_ptr()};
  return t;
}
template HeadTensors prepare_head(const HeadLogProbArguments&);
template HeadTensors prepare_head(const HeadLogProbBackwardArguments&);

at::Tensor prepare_head_grad(const HeadTensors& t, const at::Tensor& grad) {
  TORCH_CHECK(grad.dim() == 1 || grad.dim() == 2, "head_log_prob_backward: grad must have shape (B) or (B, D), got ",
              grad.sizes());
  TORCH_CHECK(grad.size(0) == t.rows.batch && (grad.dim() == 1 || grad.size(1) == t.rows.variables),
              "head_log_prob_backward: grad must have shape (B) or (B, D) with B = ", t.rows.batch,
              ", D = ", t.rows.variables, ", got ", grad.sizes());
  return grad.to(t.parameters.scalar_type()).contiguous();
}

namespace {

// ---------------------------------------------------------------- fake implementations

at::Tensor head_log_prob_meta(const HeadLogProbArguments& a) {
  check_head_log_prob(a);
  return at::empty_symint(a.x.sym_sizes(), a.parameters.options());
}

std::tuple<at::Tensor, at::Tensor> head_log_prob_backward_meta(const HeadLogProbBackwardArguments& a) {
  check_head_log_prob(a);
  return {at::empty_symint(a.parameters.sym_sizes(), a.parameters.options()),
          at::empty_symint(a.x.sym_sizes(), a.parameters.options())};
}

// ---------------------------------------------------------------- gradient

struct HeadLogProbFunction : torch::autograd::Function<HeadLogProbFunction> {
  template <typename... Members>
  static at::Tensor forward(AutogradContext* context, const Members&... members) {
    const HeadLogProbArguments a{members...};
    save(context, a);
    return call_below_autograd(a);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto [a, others] = saved<HeadLogProbArguments>(context);
    auto [grad_parameters, grad_x] = call(
        HeadLogProbBackwardArguments{grads[0], a.parameters, a.x, a.offsets, a.head, a.levels, a.head_kinds});
    const variable_list g = once_differentiable(
        HeadLogProbArguments::op, {grad_parameters, a.x.requires_grad() ? grad_x.to(a.x.scalar_type()) : at::Tensor()},
        {grads[0], a.parameters, a.x});
    variable_list out(count_members<HeadLogProbArguments>());
    out[0] = g[0];
    out[1] = g[1];
    return out;
  }
};

at::Tensor head_log_prob_autograd(const HeadLogProbArguments& a) {
  if (needs_graph(a.parameters, a.x)) return apply<HeadLogProbFunction>(a);
  return call_below_autograd(a);
}

// ---------------------------------------------------------------- autocast: float32, whatever computed the parameters

at::Tensor head_log_prob_autocast(const HeadLogProbArguments& arguments) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  HeadLogProbArguments a = arguments;
  a.parameters = a.parameters.to(compute_type(a.parameters.scalar_type()));
  return call(a);
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) {
  implement<head_log_prob_meta>(m);
  implement<head_log_prob_backward_meta>(m);
}
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Autograd, m) { implement<head_log_prob_autograd>(m); }
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCPU, m) { implement<head_log_prob_autocast>(m); }
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCUDA, m) { implement<head_log_prob_autocast>(m); }

}  // namespace ar_fast
