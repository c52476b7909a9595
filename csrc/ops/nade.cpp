#include "nade.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "activation.h"
#include "autograd.h"

namespace ar_fast {

// ---------------------------------------------------------------- checks

void check_offsets(const char* op, const char* name, const OptionalTensor& offsets, const c10::SymInt& variables,
                   const at::Tensor& weight) {
  if (!offsets.has_value()) return;
  check_dim(op, name, *offsets, 1, "(D + 1)");
  check_size(op, name, *offsets, 0, variables + 1, "entries, one more than the variables,");
  check_dtype(op, name, *offsets, at::kLong);
  check_same_device(op, name, *offsets, "in_weight", weight);
}

void check_rows(const char* op, const char* name, const at::Tensor& weight, const char* offsets_name,
                const OptionalTensor& offsets, const c10::SymInt& variables) {
  if (offsets.has_value()) return;
  TORCH_CHECK(weight.sym_size(0) % variables == 0 && weight.sym_size(0) > 0, op, ": ", name,
              " must have a multiple of D = ", variables, " rows unless ", offsets_name, " is given, got shape ",
              weight.sym_sizes());
}

namespace {

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

// Errors name `op`. The backward op has no out_bias.
template <typename Arguments>
void check_nade(const char* op, const Arguments& a) {
  check_dim(op, "x", a.x, 2, "(B, D)");
  const c10::SymInt batch = a.x.sym_size(0), variables = a.x.sym_size(1);
  TORCH_CHECK(variables > 0, op, ": x must have at least one variable, got shape ", a.x.sym_sizes());
  check_weight(op, "in_weight", a.in_weight, a.in_weight);
  check_weight(op, "out_weight", a.out_weight, a.in_weight);
  const c10::SymInt hidden = a.in_weight.sym_size(1);
  TORCH_CHECK(a.in_bias.dim() == 1 || a.in_bias.dim() == 2, op, ": in_bias must have shape (H) or (B, H), got ",
              a.in_bias.sym_sizes());
  check_size(op, "in_bias", a.in_bias, a.in_bias.dim() - 1, hidden, "hidden units, as in_weight has,");
  if (a.in_bias.dim() == 2) check_size(op, "in_bias", a.in_bias, 0, batch, "rows, as x has,");
  check_same_dtype(op, "in_bias", a.in_bias, "in_weight", a.in_weight);
  check_same_device(op, "in_bias", a.in_bias, "in_weight", a.in_weight);
  if constexpr (requires { a.out_bias; }) {
    check_vector(op, "out_bias", a.out_bias, "(R_out)", a.out_weight.sym_size(0), "entries, one per row of out_weight,",
                 a.in_weight);
  }
  check_same_device(op, "x", a.x, "in_weight", a.in_weight);
  check_order(op, a.order, variables, a.in_weight);
  check_offsets(op, "in_offsets", a.in_offsets, variables, a.in_weight);
  check_offsets(op, "out_offsets", a.out_offsets, variables, a.in_weight);
  if (a.activation_scale.has_value()) {
    check_vector(op, "activation_scale", *a.activation_scale, "(D)", variables, "entries, one per variable,",
                 a.in_weight);
  }

  check_rows(op, "in_weight", a.in_weight, "in_offsets", a.in_offsets, variables);
  check_rows(op, "out_weight", a.out_weight, "out_offsets", a.out_offsets, variables);
  const auto type = a.x.scalar_type(), storage = a.in_weight.scalar_type();
  if (at::isFloatingType(type)) {
    TORCH_CHECK(a.in_offsets.has_value() || a.in_weight.sym_size(0) == variables, op,
                ": x must be an integer category where in_weight has a row per category, got ", dtype_name(type));
    TORCH_CHECK(type == storage || type == compute_type(storage), op, ": x must be bool, integer, ",
                dtype_name(storage), storage == compute_type(storage) ? "" : " or float32", ", got ", dtype_name(type));
  } else {
    TORCH_CHECK(at::isIntegralType(type, /*includeBool=*/true), op, ": x must be real, got ", dtype_name(type));
  }
}

// Checks which heads take which x: only per_variable takes a mixed one.
Head check_nade_log_prob(const NadeLogProbForwardArguments& a) {
  const char* op = NadeLogProbArguments::op;
  check_algorithm(op, a.algorithm, {"auto", "chunks"});
  const Head head = parse_head(op, a.head, a.levels, a.head_kinds);
  check_nade(op, a);
  check_head_rows(op, head, "out_weight", a.out_weight.sym_size(0), a.x.sym_size(1), a.out_offsets);
  check_head_kinds(op, a.head_kinds, a.x.sym_size(1), "in_weight", a.out_weight);
  const bool floating = at::isFloatingType(a.x.scalar_type()), per_variable = head.kind == HeadKind::per_variable;
  TORCH_CHECK(floating || !per_variable, op, ": x must be floating for a per_variable head, got ",
              dtype_name(a.x.scalar_type()));
  TORCH_CHECK(
      !floating || per_variable || !a.in_offsets.has_value(), op,
      ": x must be an integer category where in_weight has a row per category, except for a per_variable head, got ",
      dtype_name(a.x.scalar_type()));
  return head;
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
  check_draws(draw_arguments(a), count, compute_type(a.in_weight.scalar_type()), "in_weight", a.in_weight);
  return head;
}

}  // namespace

// ---------------------------------------------------------------- preparation

namespace {

at::Tensor typed(const at::Tensor& tensor, at::ScalarType type) { return tensor.to(type).contiguous(); }

// `variables` are those of x or, in sampling, of given. Not every op has x, in_bias and out_bias.
template <typename Arguments>
NadeTensors prepare_nade(const char* op, const Arguments& a, int64_t variables) {
  NadeTensors t;
  const auto type = compute_type(a.in_weight.scalar_type());
  t.in_weight = a.in_weight.contiguous();
  t.out_weight = a.out_weight.contiguous();
  t.order = contiguous_or_undefined(a.order);
  t.in_offsets = contiguous_or_undefined(a.in_offsets);
  t.out_offsets = contiguous_or_undefined(a.out_offsets);
  if (a.activation_scale.has_value()) t.activation_scale = typed(*a.activation_scale, type);

  t.model = NadeModel{};
  t.model.storage = storage_type(a.in_weight.scalar_type());
  t.model.activation = parse_activation(op, a.activation);
  t.model.variables = variables;
  t.model.hidden = a.in_weight.size(1);
  t.model.in_rows = a.in_weight.size(0);
  t.model.out_rows = a.out_weight.size(0);
  t.model.in_weight = t.in_weight.const_data_ptr();
  t.model.out_weight = t.out_weight.const_data_ptr();
  t.model.order = pointer_or_null<int64_t>(t.order);
  t.model.in_offsets = pointer_or_null<int64_t>(t.in_offsets);
  t.model.out_offsets = pointer_or_null<int64_t>(t.out_offsets);
  t.model.activation_scale = pointer_or_null<void>(t.activation_scale);
  if constexpr (requires { a.out_bias; }) {
    t.out_bias = typed(a.out_bias, type);
    t.model.out_bias = t.out_bias.const_data_ptr();
  }

  t.input = NadeInput{};
  if constexpr (requires { a.x; }) {
    t.in_bias = typed(a.in_bias, type);
    t.model.in_bias = t.in_bias.const_data_ptr();
    t.model.in_bias_stride = a.in_bias.dim() == 2 ? t.model.hidden : 0;
    const bool gathers =
        !at::isFloatingType(a.x.scalar_type()) && (a.in_offsets.has_value() || a.in_weight.size(0) != variables);
    t.x = typed(a.x, gathers ? at::kLong : type);
    t.input.batch = a.x.size(0);
    if (gathers) {
      t.input.categories = t.x.template const_data_ptr<int64_t>();
    } else {
      t.input.x = t.x.const_data_ptr();
    }
  }
  return t;
}

}  // namespace

NadeForwardTensors prepare_nade_forward(const NadeArguments& a) {
  const char* op = NadeArguments::op;
  check_algorithm(op, a.algorithm, {"auto", "chunks"});
  check_nade(op, a);
  NadeForwardTensors t{prepare_nade(op, a, a.x.size(1))};
  t.parameters = at::empty({t.input.batch, t.model.out_rows}, compute_options(a.in_weight));
  t.output.parameters = t.parameters.mutable_data_ptr();
  return t;
}

NadeForwardTensors prepare_nade_log_prob(const NadeLogProbForwardArguments& a) {
  const char* op = NadeLogProbArguments::op;
  const Head head = check_nade_log_prob(a);
  NadeForwardTensors t{prepare_nade(op, a, a.x.size(1))};
  const auto options = compute_options(a.in_weight);
  t.log_prob = a.per_variable ? at::empty(a.x.sizes(), options) : at::empty({t.input.batch}, options);
  t.parameters =
      a.keep_parameters ? at::empty({t.input.batch, t.model.out_rows}, options) : at::empty({0}, options);
  t.output.head = with_kinds(head, a.head_kinds, t.head_kinds);
  t.output.parameters = a.keep_parameters ? t.parameters.mutable_data_ptr() : nullptr;
  (a.per_variable ? t.output.log_prob_per_variable : t.output.log_prob) = t.log_prob.mutable_data_ptr();
  return t;
}

NadeBackwardTensors prepare_nade_backward(const NadeBackwardArguments& a) {
  const char* op = NadeBackwardArguments::op;
  check_algorithm(op, a.algorithm, {"auto", "chunks"});
  check_nade(op, a);
  NadeBackwardTensors t{prepare_nade(op, a, a.x.size(1))};
  const int64_t batch = t.input.batch;
  TORCH_CHECK(a.grad.dim() == 2 && a.grad.size(0) == batch && a.grad.size(1) == t.model.out_rows, op,
              ": grad must have shape (B, R_out) = (", batch, ", ", t.model.out_rows, "), got ", a.grad.sizes());
  TORCH_CHECK(!a.needs_x || at::isFloatingType(a.x.scalar_type()), op, ": x must be floating to have a gradient, got ",
              dtype_name(a.x.scalar_type()));
  const auto options = compute_options(a.in_weight);
  t.grad = typed(a.grad, compute_type(a.in_weight.scalar_type()));
  t.grad_x = a.needs_x ? at::empty(a.x.sizes(), options) : at::empty({0}, options);
  t.grad_in_weight = at::empty(a.in_weight.sizes(), a.in_weight.options());
  t.grad_in_bias = at::empty(a.in_bias.sizes(), options);
  t.grad_out_weight = at::empty(a.out_weight.sizes(), a.in_weight.options());
  t.grad_activation_scale =
      a.needs_activation_scale ? at::empty({batch, t.model.variables}, options) : at::empty({0}, options);
  t.output.grad_parameters = t.grad.const_data_ptr();
  t.output.grad_in_weight = t.grad_in_weight.mutable_data_ptr();
  t.output.grad_out_weight = t.grad_out_weight.mutable_data_ptr();
  t.output.grad_in_bias = t.grad_in_bias.mutable_data_ptr();
  t.output.grad_x = a.needs_x ? t.grad_x.mutable_data_ptr() : nullptr;
  t.output.grad_activation_scale = a.needs_activation_scale ? t.grad_activation_scale.mutable_data_ptr() : nullptr;
  return t;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> NadeBackwardTensors::result() const {
  return {grad_x, grad_in_weight, grad_in_bias, grad_out_weight,
          output.grad_activation_scale ? grad_activation_scale.sum(0) : grad_activation_scale};
}

NadeSampleTensors prepare_nade_sample(const NadeSampleArguments& a) {
  const Head head = check_nade_sample(a);
  NadeSampleTensors t{prepare_nade(NadeSampleArguments::op, a, a.variables)};
  t.next = a.state.clone(at::MemoryFormat::Contiguous);
  t.drawn = prepare_draws(draw_arguments(a), head, a.variables);
  t.drawn.draws.kinds_by_variable = true;
  t.sample.draws = t.drawn.draws;
  t.sample.gathers =
      head.kind != HeadKind::per_variable && (a.in_offsets.has_value() || a.in_weight.size(0) != a.variables);
  t.sample.state = t.next.mutable_data_ptr();
  return t;
}

namespace {

// ---------------------------------------------------------------- fake implementations

at::Tensor nade_meta(const NadeArguments& a) {
  parse_activation(NadeArguments::op, a.activation);
  check_algorithm(NadeArguments::op, a.algorithm, {"auto", "chunks"});
  check_nade(NadeArguments::op, a);
  return at::empty_symint({a.x.sym_size(0), a.out_weight.sym_size(0)}, compute_options(a.in_weight));
}

NadeBackwardArguments::Result nade_backward_meta(const NadeBackwardArguments& a) {
  check_nade(NadeBackwardArguments::op, a);
  const auto options = compute_options(a.in_weight);
  return {a.needs_x ? at::empty_symint(a.x.sym_sizes(), options) : at::empty({0}, options),
          at::empty_symint(a.in_weight.sym_sizes(), a.in_weight.options()),
          at::empty_symint(a.in_bias.sym_sizes(), options),
          at::empty_symint(a.out_weight.sym_sizes(), a.in_weight.options()),
          a.needs_activation_scale ? at::empty_symint({a.x.sym_size(1)}, options) : at::empty({0}, options)};
}

std::tuple<at::Tensor, at::Tensor> nade_log_prob_forward_meta(const NadeLogProbForwardArguments& a) {
  parse_activation(NadeLogProbArguments::op, a.activation);
  check_nade_log_prob(a);
  const c10::SymInt batch = a.x.sym_size(0);
  const auto options = compute_options(a.in_weight);
  return {a.per_variable ? at::empty_symint(a.x.sym_sizes(), options) : at::empty_symint({batch}, options),
          a.keep_parameters ? at::empty_symint({batch, a.out_weight.sym_size(0)}, options) : at::empty({0}, options)};
}

NadeSampleArguments::Result nade_sample_meta(const NadeSampleArguments& a) {
  parse_activation(NadeSampleArguments::op, a.activation);
  check_nade_sample(a);
  return empty_samples(draw_arguments(a));
}

// ---------------------------------------------------------------- gradients

// Parameters larger than this are not kept for the backward pass but recomputed, some rows at a time.
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

// grad (B, R_out) belongs to the parameters of the rows a.x, whose biases are a.in_bias.
template <typename Arguments>
Gradients parameter_gradients(AutogradContext* context, const Arguments& a, const at::Tensor& grad) {
  const bool needs_x = context->saved_data["needs_x"].toBool();
  const bool needs_scale = context->saved_data["needs_activation_scale"].toBool();
  auto [grad_x, grad_in_weight, grad_in_bias, grad_out_weight, grad_scale] =
      call(NadeBackwardArguments{grad, a.x, a.in_weight, a.in_bias, a.out_weight, a.order, a.in_offsets, a.out_offsets,
                                 a.activation_scale, a.activation, needs_x, needs_scale, a.algorithm});
  return {needs_x ? grad_x : at::Tensor(), grad_in_weight, grad_in_bias,
          grad_out_weight, grad.sum(0), needs_scale ? grad_scale : at::Tensor()};
}

template <typename Arguments>
void save_nade(AutogradContext* context, const Arguments& a, const variable_list& others) {
  save(context, a, others);
  context->saved_data["needs_x"] = a.x.requires_grad();
  context->saved_data["needs_activation_scale"] = requires_grad(a.activation_scale);
}

// The gradients as autograd takes them: one for each argument, in the type of its tensor.
template <typename Arguments>
variable_list finish(const Arguments& a, const Gradients& g, const at::Tensor& grad) {
  const auto type = a.in_weight.scalar_type();
  const auto typed = [](const at::Tensor& tensor, at::ScalarType to) {
    return tensor.defined() ? tensor.to(to) : at::Tensor();
  };
  const variable_list found =
      once_differentiable(Arguments::op,
                          {typed(g.x, a.x.scalar_type()), typed(g.in_weight, type), typed(g.in_bias, type),
                           typed(g.out_weight, type), typed(g.out_bias, type), typed(g.activation_scale, type)},
                          {grad, a.x, a.in_weight, a.in_bias, a.out_weight});
  variable_list out(count_members<Arguments>());
  std::copy(found.begin(), found.begin() + 5, out.begin());
  out[8] = found[5];
  return out;
}

struct NadeFunction : torch::autograd::Function<NadeFunction> {
  template <typename... Members>
  static at::Tensor forward(AutogradContext* context, const Members&... members) {
    const NadeArguments a{members...};
    NadeArguments kept = a;
    kept.out_bias = at::Tensor();
    save_nade(context, kept, {});
    return call_below_autograd(a);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto [a, others] = saved<NadeArguments>(context);
    return finish(a, parameter_gradients(context, a, grads[0]), grads[0]);
  }
};

at::Tensor nade_autograd(const NadeArguments& a) {
  if (needs_graph(a.x, a.in_weight, a.in_bias, a.out_weight, a.out_bias, a.activation_scale)) {
    return apply<NadeFunction>(a);
  }
  return call_below_autograd(a);
}

// Gradients of the log-likelihood of the rows a.x, given their parameters.
Gradients log_prob_gradients(AutogradContext* context, const NadeLogProbArguments& a, const at::Tensor& parameters,
                             const at::Tensor& grad) {
  auto [grad_parameters, grad_target] = call(
      HeadLogProbBackwardArguments{grad, parameters, a.x, a.out_offsets, a.head, a.levels, a.head_kinds});
  Gradients g = parameter_gradients(context, a, grad_parameters);
  if (g.x.defined()) g.x = g.x + grad_target;
  return g;
}

// The same if the parameters of all rows are too many to keep.
Gradients recomputed_gradients(AutogradContext* context, const NadeLogProbArguments& a, const at::Tensor& grad) {
  const int64_t batch = a.x.size(0), rows = std::max<int64_t>(1, kept_bytes / parameter_bytes(a.out_weight));
  const auto compute = compute_type(a.in_weight.scalar_type());
  Gradients total;
  variable_list grads_x, grads_in_bias;
  NadeLogProbArguments part = a;
  for (int64_t first = 0; first < batch; first += rows) {
    const int64_t count = std::min(rows, batch - first);
    part.x = a.x.narrow(0, first, count);
    if (a.in_bias.dim() == 2) part.in_bias = a.in_bias.narrow(0, first, count);
    const at::Tensor parameters =
        call(NadeArguments{part.x, a.in_weight, part.in_bias, a.out_weight, a.out_bias, a.order, a.in_offsets,
                           a.out_offsets, a.activation_scale, a.activation, a.algorithm});
    Gradients g = log_prob_gradients(context, part, parameters, grad.narrow(0, first, count));
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
  if (a.in_bias.dim() == 2) {
    total.in_bias = at::cat(grads_in_bias);
  } else {
    for (size_t i = 1; i < grads_in_bias.size(); ++i) total.in_bias.add_(grads_in_bias[i]);
  }
  return total;
}

NadeLogProbForwardArguments forward_of(const NadeLogProbArguments& a, bool keep_parameters) {
  return {a.x,        a.in_weight,   a.in_bias,     a.out_weight,       a.out_bias,
          a.order,    a.in_offsets,  a.out_offsets, a.activation_scale, a.activation,
          a.head,     a.levels,      a.head_kinds,  a.per_variable,     keep_parameters,
          a.algorithm};
}

struct NadeLogProbFunction : torch::autograd::Function<NadeLogProbFunction> {
  template <typename... Members>
  static at::Tensor forward(AutogradContext* context, const Members&... members) {
    const NadeLogProbArguments a{members...};
    at::AutoDispatchBelowADInplaceOrView guard;
    // For a compiled batch of any size the parameters are kept: a comparison would compile the sizes on either side
    // separately, and the loop over the rows of a part would compile every size.
    const std::optional<int64_t> batch = a.x.sym_size(0).maybe_as_int();
    const bool keep = !batch.has_value() || *batch * parameter_bytes(a.out_weight) <= kept_bytes;
    auto [log_prob, parameters] = call(forward_of(a, keep));
    save_nade(context, a, {keep ? parameters : at::Tensor()});
    return log_prob;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto [a, others] = saved<NadeLogProbArguments>(context);
    Gradients g;
    {
      at::AutoGradMode no_graph(false);
      g = others[0].defined() ? log_prob_gradients(context, a, others[0], grads[0])
                              : recomputed_gradients(context, a, grads[0]);
    }
    return finish(a, g, grads[0]);
  }
};

// Below autograd, nade_log_prob is its forward without the parameters.
at::Tensor nade_log_prob_below_autograd(const NadeLogProbArguments& a) {
  return std::get<0>(call(forward_of(a, /*keep_parameters=*/false)));
}

at::Tensor nade_log_prob_autograd(const NadeLogProbArguments& a) {
  if (needs_graph(a.x, a.in_weight, a.in_bias, a.out_weight, a.out_bias, a.activation_scale)) {
    return apply<NadeLogProbFunction>(a);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return nade_log_prob_below_autograd(a);
}

// ---------------------------------------------------------------- autocast: float32, 16-bit storage stays

at::Tensor widest(const at::Tensor& tensor, at::ScalarType type) {
  return at::isFloatingType(tensor.scalar_type()) && tensor.scalar_type() != at::kDouble ? tensor.to(type) : tensor;
}

OptionalTensor widest(const OptionalTensor& tensor, at::ScalarType type) {
  return tensor.has_value() ? OptionalTensor(widest(*tensor, type)) : tensor;
}

template <typename Arguments>
at::Tensor nade_autocast(const Arguments& arguments) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  const auto type = arguments.in_weight.scalar_type();
  Arguments a = arguments;
  a.x = widest(a.x, compute_type(type));
  a.in_bias = widest(a.in_bias, type);
  a.out_weight = widest(a.out_weight, type);
  a.out_bias = widest(a.out_bias, type);
  a.activation_scale = widest(a.activation_scale, type);
  return call(a);
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Meta, m) {
  implement<nade_meta>(m);
  implement<nade_backward_meta>(m);
  implement<nade_log_prob_forward_meta>(m);
  implement<nade_sample_meta>(m);
  implement<nade_log_prob_below_autograd>(m);
}

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<nade_log_prob_below_autograd>(m); }
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CUDA, m) { implement<nade_log_prob_below_autograd>(m); }

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Autograd, m) {
  implement<nade_autograd>(m);
  implement<nade_log_prob_autograd>(m);
}

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCPU, m) {
  implement<nade_autocast<NadeArguments>>(m);
  implement<nade_autocast<NadeLogProbArguments>>(m);
}
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCUDA, m) {
  implement<nade_autocast<NadeArguments>>(m);
  implement<nade_autocast<NadeLogProbArguments>>(m);
}

}  // namespace ar_fast
