#include "masked_mlp_flow.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "activation.h"
#include "autograd.h"
#include "masked_mlp.h"
#include "small_product.h"
#include "transforms.h"
#include "univariate_transform.h"

namespace ar_fast {
namespace {

using Program = std::vector<MaskedMlpStep>;

// What all functions of the op need: its arguments as they were read.
struct Flow {
  Program program;
  Activation activation;
  size_t terms = 0;       // of one transform
  size_t transforms = 0;
};

// The tensors of one transform.
struct OneTransform {
  at::TensorList weights, masks, biases;
  at::Tensor order;       // undefined without
};

// A bias, mask or order of shape (0) stands for none.
bool is_given(const at::Tensor& tensor) { return tensor.dim() != 1 || tensor.sym_size(0) != 0; }

OneTransform transform_at(const MaskedMlpFlowArguments& a, const Flow& flow, size_t index) {
  const size_t begin = index * flow.terms;
  const bool ordered = !a.orders.empty() && is_given(a.orders[index]);
  return {a.weights.slice(begin, flow.terms), a.masks.slice(begin, flow.terms), a.biases.slice(begin, flow.terms),
          ordered ? a.orders[index] : at::Tensor()};
}

// On the CPU, where values can be looked at without a synchronisation, and where there are values.
void check_permutation(size_t index, const at::Tensor& order) {
  if (!order.device().is_cpu() || order.key_set().has(c10::DispatchKey::Python)) return;
  const at::Tensor own = order.contiguous();
  const int64_t* const values = own.const_data_ptr<int64_t>();
  std::vector<bool> seen(static_cast<size_t>(own.size(0)), false);
  for (int64_t i = 0; i < own.size(0); ++i) {
    const bool inside = values[i] >= 0 && values[i] < own.size(0);
    TORCH_CHECK(inside && !seen[static_cast<size_t>(values[i])], MaskedMlpFlowArguments::op, ": orders[", index,
                "] must be a permutation of 0 ... D-1 = ", own.size(0) - 1, ", got ", values[i], " at position ", i);
    seen[static_cast<size_t>(values[i])] = true;
  }
}

void check_one(const char* list, size_t index, const at::Tensor& tensor, const at::Tensor& x) {
  if (tensor.scalar_type() == x.scalar_type() && tensor.device() == x.device()) return;
  const std::string name = std::string(list) + "[" + std::to_string(index) + "]";
  check_same_dtype(MaskedMlpFlowArguments::op, name.c_str(), tensor, "x", x);
  check_same_device(MaskedMlpFlowArguments::op, name.c_str(), tensor, "x", x);
}

void check_context(const MaskedMlpFlowArguments& a, const Program& program) {
  const char* op = a.op;
  TORCH_CHECK(a.context_columns == "none" || a.context_columns == "before" || a.context_columns == "after", op,
              ": context_columns must be 'none', 'before' or 'after', got '", a.context_columns, "'");
  if (a.context.has_value()) {
    check_dim(op, "context", *a.context, 2, "(B, C)");
    check_size(op, "context", *a.context, 0, a.x.sym_size(0), "rows, as many as x,");
    check_same_dtype(op, "context", *a.context, "x", a.x);
    check_same_device(op, "context", *a.context, "x", a.x);
    return;
  }
  const bool reads = std::any_of(program.begin(), program.end(), [](const MaskedMlpStep& step) {
    return step.sources[0] == masked_mlp_context || step.sources[1] == masked_mlp_context;
  });
  TORCH_CHECK(!reads && a.context_columns == "none", op, ": context must be given where the networks read it, got none");
}

void check_networks(const MaskedMlpFlowArguments& a, const Flow& flow, const Transform& transform) {
  const char* op = a.op;
  const auto type = a.x.scalar_type();
  const c10::SymInt columns = a.context_columns == "none" ? a.x.sym_size(1) : a.x.sym_size(1) + a.context->sym_size(1);
  std::vector<c10::SymInt> widths;
  for (size_t i = 0, t = 0; i < flow.transforms; ++i) {
    widths.assign(1, columns);
    for (size_t l = 0; l < flow.program.size(); ++l) {
      const MaskedMlpStep& step = flow.program[l];
      c10::SymInt width = step.terms() > 0 ? a.weights[t].sym_size(0) : widths[static_cast<size_t>(step.add)];
      for (int64_t k = 0; k < step.terms(); ++k, ++t) {
        const at::Tensor &weight = a.weights[t], &mask = a.masks[t], &bias = a.biases[t];
        check_one("weights", t, weight, a.x);
        const c10::SymInt read = step.sources[k] == masked_mlp_context ? a.context->sym_size(1)
                                                                       : widths[static_cast<size_t>(step.sources[k])];
        TORCH_CHECK(weight.dim() == 2 && weight.sym_size(0) == width && weight.sym_size(1) == read, op, ": weights[", t,
                    "] must have shape (", width, ", ", read, "), got ", weight.sym_sizes());
        if (is_given(mask)) {
          TORCH_CHECK(mask.sym_sizes() == weight.sym_sizes() && mask.device() == weight.device(), op, ": masks[", t,
                      "] must have the shape and device of its weight, ", weight.sym_sizes(), " on ", weight.device(),
                      ", got ", mask.sym_sizes(), " on ", mask.device());
          TORCH_CHECK(!(mask.is_floating_point() || mask.is_complex()) || mask.scalar_type() == type, op, ": masks[", t,
                      "] must be bool, integer or of x's dtype, ", dtype_name(type), ", got ",
                      dtype_name(mask.scalar_type()));
        }
        if (is_given(bias)) {
          check_one("biases", t, bias, a.x);
          const bool rows = bias.dim() == 2 && bias.sym_size(0) == a.x.sym_size(0);
          TORCH_CHECK((bias.dim() == 1 || rows) && bias.sym_size(-1) == width, op, ": biases[", t,
                      "] must have shape (", width, ") or (", a.x.sym_size(0), ", ", width, "), or (0) for none, got ",
                      bias.sym_sizes());
        }
      }
      if (step.add >= 0) {
        TORCH_CHECK(widths[static_cast<size_t>(step.add)] == width, op, ": layer ", l, " of program adds a value of ",
                    widths[static_cast<size_t>(step.add)], " units, which must be as many as its own, ", width);
      }
      widths.push_back(std::move(width));
    }
    check_transform_rows(op, transform, "the last layer", widths.back(), a.x.sym_size(1));
  }
}

Flow check_masked_mlp_flow(const MaskedMlpFlowArguments& a) {
  const char* op = a.op;
  Flow flow{parse_program(op, a.program, /*context=*/true), parse_layer_activation(op, a.activation)};
  check_dim(op, "x", a.x, 2, "(B, D)");
  const auto type = a.x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble, op, ": x must be float32 or float64, got ", dtype_name(type));
  TORCH_CHECK(a.x.sym_size(1) > 0, op, ": x must have at least one variable, got shape ", a.x.sym_sizes());
  const Transform transform = parse_transform(op, a.transform, a.constants);
  TORCH_CHECK(transform.kind != TransformKind::none, op, ": transform must be the name of one, got '", a.transform, "'");
  TORCH_CHECK(!a.scale_first || transform.is_affine(), op, ": scale_first must be False for a spline, got True");
  for (const MaskedMlpStep& step : flow.program) flow.terms += static_cast<size_t>(step.terms());
  TORCH_CHECK(!a.weights.empty() && a.weights.size() % flow.terms == 0, op,
              ": weights must hold one tensor per term of program, ", flow.terms, ", for each transform, got ",
              a.weights.size());
  flow.transforms = a.weights.size() / flow.terms;
  TORCH_CHECK(a.masks.size() == a.weights.size() && a.biases.size() == a.weights.size(), op,
              ": masks and biases must hold one tensor per weight, ", a.weights.size(), ", got ", a.masks.size(),
              " and ", a.biases.size());
  TORCH_CHECK(a.orders.empty() || a.orders.size() == flow.transforms, op,
              ": orders must hold one tensor per transform, ", flow.transforms, ", or none, got ", a.orders.size());
  for (size_t i = 0; i < a.orders.size(); ++i) {
    const at::Tensor& order = a.orders[i];
    TORCH_CHECK(!is_given(order) || (order.dim() == 1 && order.sym_size(0) == a.x.sym_size(1) &&
                                     order.scalar_type() == at::kLong && order.device() == a.x.device()),
                op, ": orders[", i, "] must be int64 of shape (", a.x.sym_size(1), ") on ", a.x.device(),
                ", or (0) for none, got ", dtype_name(order.scalar_type()), " of shape ", order.sym_sizes(), " on ",
                order.device());
    if (is_given(order)) check_permutation(i, order);
  }
  check_context(a, flow.program);
  check_networks(a, flow, transform);
  return flow;
}

// The CPU's products of small matrices, where they can run and are faster than torch's; null elsewhere.
const SmallProducts* small_products_for(const MaskedMlpFlowArguments& a) {
  constexpr int64_t most_inputs = 256;
  if (small_products == nullptr || !a.x.device().is_cpu() || a.x.key_set().has(c10::DispatchKey::Python)) {
    return nullptr;
  }
  for (size_t t = 0; t < a.weights.size(); ++t) {
    const bool masked = is_given(a.masks[t]);
    if (masked && a.masks[t].scalar_type() != a.x.scalar_type()) return nullptr;
    if (a.weights[t].size(1) > most_inputs) return nullptr;
  }
  return small_products;
}

at::Tensor unless_empty(const at::Tensor& tensor) { return is_given(tensor) ? tensor : at::Tensor(); }

at::Tensor masked(const at::Tensor& weight, const at::Tensor& mask) {
  return is_given(mask) ? at::mul(weight, mask) : weight;
}

void add_to(at::Tensor& sum, const at::Tensor& other) { sum = sum.defined() ? sum + other : other; }

// The values of a network, value 0 being its input, and before the activation those that its derivative needs.
struct Evaluated {
  variable_list values, before;
};

const at::Tensor& source_of(const MaskedMlpFlowArguments& a, at::TensorList values, int64_t source) {
  return source == masked_mlp_context ? *a.context : values[static_cast<size_t>(source)];
}

// `small` null: by torch, in functions that autograd knows.
Evaluated evaluate(const MaskedMlpFlowArguments& a, const Flow& flow, const OneTransform& own, const at::Tensor& input,
                   const SmallProducts* small) {
  const Activation f = flow.activation;
  Evaluated found;
  found.values.reserve(flow.program.size() + 1);
  found.values.push_back(input);
  size_t t = 0;
  for (const MaskedMlpStep& step : flow.program) {
    const bool keeps = step.activated && !derivative_from_result(f);
    const auto terms = static_cast<size_t>(step.terms());
    at::Tensor z;
    for (size_t k = 0; k < terms; ++k) {
      if (is_given(own.biases[t + k])) add_to(z, own.biases[t + k]);
    }
    if (step.add >= 0) add_to(z, found.values[static_cast<size_t>(step.add)]);
    bool activated = !step.activated;
    for (size_t k = 0; k < terms; ++k, ++t) {
      const at::Tensor& source = source_of(a, found.values, step.sources[k]);
      if (small != nullptr) {
        const bool here = step.activated && !keeps && k + 1 == terms;
        z = small->forward(source, own.weights[t], unless_empty(own.masks[t]), z, here ? f : Activation::none);
        activated = activated || here;
        continue;
      }
      const at::Tensor weight = masked(own.weights[t], own.masks[t]).t();
      z = z.defined() ? at::addmm(z, source, weight) : at::mm(source, weight);
    }
    found.before.push_back(keeps ? z : at::Tensor());
    found.values.push_back(activated ? z : activate(f, z));
  }
  return found;
}

// A network's input: x, and the context's columns if it reads them so.
at::Tensor with_context(const MaskedMlpFlowArguments& a, const at::Tensor& x) {
  if (a.context_columns == "none") return x;
  return a.context_columns == "before" ? at::cat({*a.context, x}, 1) : at::cat({x, *a.context}, 1);
}

at::Tensor variables_of(const MaskedMlpFlowArguments& a, const at::Tensor& input) {
  if (a.context_columns == "none") return input;
  return input.narrow_symint(1, a.context_columns == "before" ? a.context->sym_size(1) : 0, a.x.sym_size(1));
}

at::Tensor context_of(const MaskedMlpFlowArguments& a, const at::Tensor& input) {
  return input.narrow_symint(1, a.context_columns == "before" ? 0 : a.x.sym_size(1), a.context->sym_size(1));
}

struct Passed {
  std::vector<Evaluated> networks;
  at::Tensor y, log_det;
};

Passed pass(const MaskedMlpFlowArguments& a, const Flow& flow, const SmallProducts* small) {
  Passed found;
  found.y = a.x;
  for (size_t i = 0; i < flow.transforms; ++i) {
    const OneTransform own = transform_at(a, flow, i);
    found.networks.push_back(evaluate(a, flow, own, with_context(a, found.y), small));
    const auto [y, log_det] = call(UnivariateTransformArguments{
        found.y, found.networks.back().values.back(), a.transform, a.constants, a.by_parameter, a.scale_first});
    add_to(found.log_det, log_det);
    found.y = own.order.defined() ? y.index_select(1, own.order) : y;
  }
  return found;
}

std::tuple<at::Tensor, at::Tensor> masked_mlp_flow(const MaskedMlpFlowArguments& a) {
  const Flow flow = check_masked_mlp_flow(a);
  const Passed found = pass(a, flow, small_products_for(a));
  return {found.y, found.log_det};
}

at::Tensor before_activation(Activation f, const at::Tensor& grad, const at::Tensor& value, const at::Tensor& before) {
  if (f == Activation::silu) return at::silu_backward(grad, before);
  if (f == Activation::gelu) return at::gelu_backward(grad, before);
  return activate_backward(f, grad, value);
}

struct MaskedMlpFlowFunction : torch::autograd::Function<MaskedMlpFlowFunction> {
  // Gradients are in this order: by x, weights, biases, context. The last may be missing.
  static constexpr size_t of_x = 0, of_weights = 1;

  static variable_list forward(AutogradContext* context, const MaskedMlpFlowArguments& a, const at::Tensor& x,
                               at::TensorList weights, at::TensorList biases, const OptionalTensor& given) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Flow flow = check_masked_mlp_flow(a);
    const Passed found = pass(a, flow, small_products_for(a));
    variable_list kept{x};
    const auto keep = [&](at::TensorList list) { kept.insert(kept.end(), list.begin(), list.end()); };
    keep(weights);
    keep(biases);
    kept.push_back(or_undefined(given));
    keep(a.masks);
    keep(a.orders);
    for (const Evaluated& own : found.networks) {
      keep(own.values);
      keep(own.before);
    }
    context->save_for_backward(std::move(kept));
    auto& data = context->saved_data;
    data["terms"] = static_cast<int64_t>(weights.size());
    data["orders"] = static_cast<int64_t>(a.orders.size());
    data["program"] = a.program;
    data["context_columns"] = std::string(a.context_columns);
    data["activation"] = std::string(a.activation);
    data["transform"] = std::string(a.transform);
    data["constants"] = a.constants;
    data["by_parameter"] = a.by_parameter;
    data["scale_first"] = a.scale_first;
    return {found.y, found.log_det};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list kept = context->get_saved_variables();
    auto& data = context->saved_data;
    const std::vector<int64_t> numbers = data["program"].toIntVector();
    const std::vector<double> constants = data["constants"].toDoubleVector();
    const auto terms = static_cast<size_t>(data["terms"].toInt()), orders = static_cast<size_t>(data["orders"].toInt());
    const size_t of_context = of_weights + 2 * terms, of_masks = of_context + 1, of_orders = of_masks + terms;
    const bool again = at::GradMode::is_enabled();
    if (again) separate(kept, of_masks);
    const at::TensorList all(kept);
    const at::TensorList values = all.slice(of_orders + orders);
    const MaskedMlpFlowArguments a{kept[of_x],
                                   or_none(kept[of_context]),
                                   all.slice(of_weights, terms),
                                   all.slice(of_masks, terms),
                                   all.slice(of_weights + terms, terms),
                                   numbers,
                                   all.slice(of_orders, orders),
                                   data["context_columns"].toStringView(),
                                   data["activation"].toStringView(),
                                   data["transform"].toStringView(),
                                   constants,
                                   data["by_parameter"].toBool(),
                                   data["scale_first"].toBool()};
    const Flow flow = check_masked_mlp_flow(a);
    variable_list by(of_context + 1);
    if (again) {
      const Passed found = pass(a, flow, nullptr);
      differentiable_gradients({found.y, found.log_det}, grads,
                               variable_list(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(by.size())), by);
    } else {
      gradients(context, a, flow, values, grads, by);
    }
    // Behind that of the arguments, which are no tensor.
    by.insert(by.begin(), at::Tensor());
    return by;
  }

 private:
  static void gradients(AutogradContext* context, const MaskedMlpFlowArguments& a, const Flow& flow,
                        at::TensorList values, const variable_list& grads, variable_list& by) {
    const size_t layers = flow.program.size();
    const size_t of_context = by.size() - 1;
    const bool by_columns = a.context_columns != "none" && context->needs_input_grad(of_context);
    at::Tensor grad = grads[0];
    for (size_t i = flow.transforms; i-- > 0;) {
      const OneTransform own = transform_at(a, flow, i);
      const at::TensorList its = values.slice(i * (2 * layers + 1), 2 * layers + 1);
      if (own.order.defined()) grad = at::empty_like(grad).index_copy_(1, own.order, grad);
      const auto [by_x, by_parameters] = call(UnivariateTransformBackwardArguments{
          grad, grads[1], variables_of(a, its[0]), its[layers], a.transform, a.constants, a.by_parameter,
          a.scale_first});
      const bool first = i == 0, wanted = !first || context->needs_input_grad(of_x);
      const at::Tensor by_input =
          network_gradients(context, a, flow, i, its, by_parameters, wanted || by_columns, by);
      if (by_columns && by_input.defined()) add_to(by[of_context], context_of(a, by_input));
      grad = by_x;
      if (wanted && by_input.defined()) grad = by_x + variables_of(a, by_input);
    }
    if (context->needs_input_grad(of_x)) by[of_x] = grad;
  }

  // Adds the gradients by the network's weights, biases and the context to `by`; returns that by its input, if wanted.
  static at::Tensor network_gradients(AutogradContext* context, const MaskedMlpFlowArguments& a, const Flow& flow,
                                      size_t index, at::TensorList its, const at::Tensor& by_parameters, bool wanted,
                                      variable_list& by) {
    const SmallProducts* small = small_products_for(a);
    const Program& program = flow.program;
    const size_t layers = program.size();
    const OneTransform own = transform_at(a, flow, index);
    const at::TensorList values = its.slice(0, layers + 1), before = its.slice(layers + 1, layers);
    const size_t of_weight = of_weights + index * flow.terms, of_bias = of_weight + a.weights.size();
    const size_t of_context = by.size() - 1;
    // By the values of the program, from the last to the first.
    variable_list by_value(layers + 1);
    by_value.back() = by_parameters;
    size_t term = flow.terms;
    for (size_t l = layers; l-- > 0;) {
      const MaskedMlpStep& step = program[l];
      at::Tensor grad = std::exchange(by_value[l + 1], at::Tensor());
      term -= static_cast<size_t>(step.terms());
      if (!grad.defined()) continue;
      at::Tensor sums;
      if (small != nullptr) {
        const bool here = step.activated && !before[l].defined();
        if (step.activated && !here) grad = before_activation(flow.activation, grad, values[l + 1], before[l]);
        const Activation own_activation = here ? flow.activation : Activation::none;
        std::tie(grad, sums) = small->activation_backward(own_activation, grad, values[l + 1]);
      } else if (step.activated) {
        grad = before_activation(flow.activation, grad, values[l + 1], before[l]);
      }
      if (step.add >= 0) add_to(by_value[static_cast<size_t>(step.add)], grad);
      for (int64_t k = 0; k < step.terms(); ++k) {
        const size_t t = term + static_cast<size_t>(k);
        const at::Tensor &weight = own.weights[t], &mask = own.masks[t], &bias = own.biases[t];
        const int64_t source = step.sources[k];
        if (is_given(bias) && context->needs_input_grad(of_bias + t)) {
          // The caller may write into one of two gradients that are equal.
          const at::Tensor found = bias.dim() == 2 ? grad : sums.defined() ? sums : at::sum(grad, 0);
          by[of_bias + t] = k == 0 ? found : found.clone();
        }
        if (context->needs_input_grad(of_weight + t)) {
          const at::Tensor& read = source_of(a, values, source);
          at::Tensor& found = by[of_weight + t];
          if (small != nullptr) {
            found = small->grad_weight(grad, read, unless_empty(mask));
          } else {
            found = masked(at::mm(grad.t(), read), mask);
          }
        }
        const bool of_the_context = source == masked_mlp_context;
        if (of_the_context ? !context->needs_input_grad(of_context) : source == 0 && !wanted) continue;
        const at::Tensor found = small != nullptr ? small->grad_input(grad, weight, unless_empty(mask))
                                                  : at::mm(grad, masked(weight, mask));
        add_to(of_the_context ? by[of_context] : by_value[static_cast<size_t>(source)], found);
      }
    }
    return by_value[0];
  }
};

std::tuple<at::Tensor, at::Tensor> masked_mlp_flow_autograd(const MaskedMlpFlowArguments& a) {
  const auto trained = [](const at::Tensor& tensor) { return tensor.requires_grad(); };
  const bool records = at::GradMode::is_enabled() &&
                       (trained(a.x) || (a.context.has_value() && trained(*a.context)) ||
                        std::any_of(a.weights.begin(), a.weights.end(), trained) ||
                        std::any_of(a.biases.begin(), a.biases.end(), trained));
  if (!records) return call_below_autograd(a);
  const variable_list result = MaskedMlpFlowFunction::apply(a, a.x, a.weights, a.biases, a.context);
  return {result[0], result[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CompositeExplicitAutograd, m) { implement<masked_mlp_flow>(m); }
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Autograd, m) { implement<masked_mlp_flow_autograd>(m); }

}  // namespace ar_fast
