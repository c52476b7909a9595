#include "masked_mlp_transform.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
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

bool has_bias(const at::Tensor& bias) { return bias.dim() != 1 || bias.sym_size(0) != 0; }

void check_tensor(const char* op, const char* list, size_t index, const at::Tensor& tensor, const at::Tensor& input) {
  const std::string name = std::string(list) + "[" + std::to_string(index) + "]";
  check_same_dtype(op, name.c_str(), tensor, "input", input);
  check_same_device(op, name.c_str(), tensor, "input", input);
}

Program check_masked_mlp_transform(const MaskedMlpTransformArguments& a) {
  const char* op = a.op;
  Program program = parse_program(op, a.program);
  check_dim(op, "input", a.input, 2, "(B, I)");
  const auto type = a.input.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble, op, ": input must be float32 or float64, got ",
              dtype_name(type));
  TORCH_CHECK(a.variables > 0 && a.first >= 0 && a.first + a.variables <= a.input.sym_size(1), op,
              ": variables must be columns of input, got first = ", a.first, " and variables = ", a.variables, " of ",
              a.input.sym_size(1), " columns");
  const Transform transform = parse_transform(op, a.transform, a.constants);
  TORCH_CHECK(transform.kind != TransformKind::none, op, ": transform must be the name of one, got '", a.transform, "'");
  TORCH_CHECK(!a.scale_first || transform.is_affine(), op, ": scale_first must be False for a spline, got True");
  size_t terms = 0;
  for (const MaskedMlpStep& step : program) terms += static_cast<size_t>(step.terms());
  TORCH_CHECK(a.weights.size() == terms && a.masks.size() == terms, op,
              ": weights and masks must hold one tensor per term of program, ", terms, ", got ", a.weights.size(),
              " and ", a.masks.size());
  TORCH_CHECK(a.biases.size() == program.size(), op, ": biases must hold one tensor per layer, ", program.size(),
              ", got ", a.biases.size());
  std::vector<c10::SymInt> widths{a.input.sym_size(1)};
  for (size_t l = 0, t = 0; l < program.size(); ++l) {
    const MaskedMlpStep& step = program[l];
    c10::SymInt width = step.terms() > 0 ? a.weights[t].sym_size(0) : widths[static_cast<size_t>(step.add)];
    for (int64_t k = 0; k < step.terms(); ++k, ++t) {
      const at::Tensor &weight = a.weights[t], &mask = a.masks[t];
      check_tensor(op, "weights", t, weight, a.input);
      const c10::SymInt& read = widths[static_cast<size_t>(step.sources[k])];
      TORCH_CHECK(weight.dim() == 2 && weight.sym_size(0) == width && weight.sym_size(1) == read, op, ": weights[", t,
                  "] must have shape (", width, ", ", read, "), got ", weight.sym_sizes());
      TORCH_CHECK(mask.sym_sizes() == weight.sym_sizes() && mask.device() == weight.device(), op, ": masks[", t,
                  "] must have the shape and device of its weight, ", weight.sym_sizes(), " on ", weight.device(),
                  ", got ", mask.sym_sizes(), " on ", mask.device());
      TORCH_CHECK(!(mask.is_floating_point() || mask.is_complex()) || mask.scalar_type() == type, op, ": masks[", t,
                  "] must be bool, integer or of input's dtype, ", dtype_name(type), ", got ",
                  dtype_name(mask.scalar_type()));
    }
    const at::Tensor& bias = a.biases[l];
    if (has_bias(bias)) {
      check_tensor(op, "biases", l, bias, a.input);
      const bool rows = bias.dim() == 2 && bias.sym_size(0) == a.input.sym_size(0);
      TORCH_CHECK((bias.dim() == 1 || rows) && bias.sym_size(-1) == width, op, ": biases[", l, "] must have shape (",
                  width, ") or (", a.input.sym_size(0), ", ", width, "), or (0) for none, got ", bias.sym_sizes());
    }
    if (step.add >= 0) {
      TORCH_CHECK(widths[static_cast<size_t>(step.add)] == width, op, ": layer ", l, " of program adds a value of ",
                  widths[static_cast<size_t>(step.add)], " units, which must be as many as its own, ", width);
    }
    widths.push_back(std::move(width));
  }
  check_transform_rows(op, transform, "the last layer", widths.back(), a.variables);
  return program;
}

// The CPU's products of small matrices, where they can run and are faster than torch's; null elsewhere.
const SmallProducts* small_products_for(const MaskedMlpTransformArguments& a) {
  constexpr int64_t most_inputs = 256;
  if (small_products == nullptr || !a.input.device().is_cpu() || a.input.key_set().has(c10::DispatchKey::Python)) {
    return nullptr;
  }
  for (size_t t = 0; t < a.weights.size(); ++t) {
    if (a.masks[t].scalar_type() != a.input.scalar_type() || a.weights[t].size(1) > most_inputs) return nullptr;
  }
  return small_products;
}

// The values of the program, and before the activation those that its derivative needs.
struct Evaluated {
  variable_list values, before;
};

// `small` null: by torch, in functions that autograd knows.
Evaluated evaluate(const MaskedMlpTransformArguments& a, const Program& program, Activation f,
                   const SmallProducts* small) {
  Evaluated own;
  own.values.push_back(a.input);
  size_t t = 0;
  for (size_t l = 0; l < program.size(); ++l) {
    const MaskedMlpStep& step = program[l];
    const bool keeps = step.activated && !derivative_from_result(f);
    at::Tensor z = has_bias(a.biases[l]) ? a.biases[l] : at::Tensor();
    if (step.add >= 0) {
      const at::Tensor& value = own.values[static_cast<size_t>(step.add)];
      z = z.defined() ? z + value : value;
    }
    bool activated = !step.activated;
    for (int64_t k = 0; k < step.terms(); ++k, ++t) {
      const at::Tensor& source = own.values[static_cast<size_t>(step.sources[k])];
      if (small != nullptr) {
        const bool here = step.activated && !keeps && k + 1 == step.terms();
        z = small->forward(source, a.weights[t], a.masks[t], z, here ? f : Activation::none);
        activated = activated || here;
        continue;
      }
      const at::Tensor weight = at::mul(a.weights[t], a.masks[t]).t();
      z = z.defined() ? at::addmm(z, source, weight) : at::mm(source, weight);
    }
    own.before.push_back(keeps ? z : at::Tensor());
    own.values.push_back(activated ? z : activate(f, z));
  }
  return own;
}

std::tuple<at::Tensor, at::Tensor> apply_transform(const MaskedMlpTransformArguments& a, const at::Tensor& parameters) {
  return call(UnivariateTransformArguments{a.input.narrow(1, a.first, a.variables), parameters, a.transform,
                                           a.constants, a.by_parameter, a.scale_first});
}

std::tuple<at::Tensor, at::Tensor> masked_mlp_transform(const MaskedMlpTransformArguments& a) {
  const Activation f = parse_layer_activation(a.op, a.activation);
  const Program program = check_masked_mlp_transform(a);
  return apply_transform(a, evaluate(a, program, f, small_products_for(a)).values.back());
}

at::Tensor before_activation(Activation f, const at::Tensor& grad, const at::Tensor& value, const at::Tensor& before) {
  if (f == Activation::silu) return at::silu_backward(grad, before);
  if (f == Activation::gelu) return at::gelu_backward(grad, before);
  return activate_backward(f, grad, value);
}

struct MaskedMlpTransformFunction : torch::autograd::Function<MaskedMlpTransformFunction> {
  static variable_list forward(AutogradContext* context, const MaskedMlpTransformArguments& a, const at::Tensor& input,
                               at::TensorList weights, at::TensorList biases) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Activation f = parse_layer_activation(a.op, a.activation);
    const Program program = check_masked_mlp_transform(a);
    const Evaluated own = evaluate(a, program, f, small_products_for(a));
    const auto [y, log_det] = apply_transform(a, own.values.back());
    variable_list kept{input};
    for (const at::TensorList list : {weights, biases, a.masks}) kept.insert(kept.end(), list.begin(), list.end());
    for (const variable_list& list : {own.values, own.before}) {
      kept.insert(kept.end(), list.begin(), list.end());
    }
    context->save_for_backward(std::move(kept));
    auto& data = context->saved_data;
    data["program"] = a.program;
    data["variables"] = a.variables;
    data["first"] = a.first;
    data["activation"] = std::string(a.activation);
    data["transform"] = std::string(a.transform);
    data["constants"] = a.constants;
    data["by_parameter"] = a.by_parameter;
    data["scale_first"] = a.scale_first;
    return {y, log_det};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list kept = context->get_saved_variables();
    auto& data = context->saved_data;
    const std::vector<int64_t> numbers = data["program"].toIntVector();
    const std::vector<double> constants = data["constants"].toDoubleVector();
    const Program program = parse_program(MaskedMlpTransformArguments::op, numbers);
    size_t terms = 0;
    for (const MaskedMlpStep& step : program) terms += static_cast<size_t>(step.terms());
    const size_t layers = program.size();
    const at::TensorList all(kept);
    const at::TensorList weights = all.slice(1, terms), biases = all.slice(1 + terms, layers);
    const at::TensorList masks = all.slice(1 + terms + layers, terms);
    const at::TensorList values = all.slice(1 + 2 * terms + layers, layers + 1);
    const at::TensorList before = all.slice(2 + 2 * terms + 2 * layers, layers);
    const MaskedMlpTransformArguments a{kept[0],
                                        weights,
                                        masks,
                                        biases,
                                        numbers,
                                        data["variables"].toInt(),
                                        data["first"].toInt(),
                                        data["activation"].toStringView(),
                                        data["transform"].toStringView(),
                                        constants,
                                        data["by_parameter"].toBool(),
                                        data["scale_first"].toBool()};
    const Activation f = parse_layer_activation(a.op, a.activation);
    // The gradients by input, weights and biases, behind that of the arguments, which are no tensor.
    variable_list by(1 + terms + layers);
    if (at::GradMode::is_enabled()) {
      const auto [y, log_det] = apply_transform(a, evaluate(a, program, f, nullptr).values.back());
      differentiable_gradients({y, log_det}, grads, variable_list(all.begin(), all.begin() + 1 + terms + layers), by);
    } else {
      gradients(context, a, program, f, values, before, grads, by);
    }
    by.insert(by.begin(), at::Tensor());
    return by;
  }

 private:
  static void gradients(AutogradContext* context, const MaskedMlpTransformArguments& a, const Program& program,
                        Activation f, at::TensorList values, at::TensorList before, const variable_list& grads,
                        variable_list& by) {
    const SmallProducts* small = small_products_for(a);
    const size_t terms = a.weights.size();
    // By the values of the program, from the last to the first.
    variable_list by_value(values.size());
    at::Tensor by_x;
    std::tie(by_x, by_value.back()) = call(UnivariateTransformBackwardArguments{
        grads[0], grads[1], a.input.narrow(1, a.first, a.variables), values.back(), a.transform, a.constants,
        a.by_parameter, a.scale_first});
    const auto add_to = [&](int64_t value, const at::Tensor& grad) {
      at::Tensor& sum = by_value[static_cast<size_t>(value)];
      sum = sum.defined() ? sum + grad : grad;
    };
    size_t term = terms;
    for (size_t l = program.size(); l-- > 0;) {
      const MaskedMlpStep& step = program[l];
      at::Tensor grad = std::exchange(by_value[l + 1], at::Tensor());
      term -= static_cast<size_t>(step.terms());
      if (!grad.defined()) continue;
      if (step.activated) grad = before_activation(f, grad, values[l + 1], before[l]);
      if (has_bias(a.biases[l]) && context->needs_input_grad(1 + terms + l)) {
        by[1 + terms + l] = a.biases[l].dim() == 1 ? at::sum(grad, 0) : grad;
      }
      if (step.add >= 0) add_to(step.add, grad);
      for (int64_t k = 0; k < step.terms(); ++k) {
        const size_t t = term + static_cast<size_t>(k);
        const at::Tensor &weight = a.weights[t], &mask = a.masks[t];
        if (context->needs_input_grad(1 + t)) {
          const at::Tensor& source = values[static_cast<size_t>(step.sources[k])];
          by[1 + t] = small != nullptr ? small->grad_weight(grad, source, mask)
                                       : at::mul(at::mm(grad.t(), source), mask);
        }
        if (step.sources[k] > 0 || context->needs_input_grad(0)) {
          add_to(step.sources[k], small != nullptr ? small->grad_input(grad, weight, mask)
                                                   : at::mm(grad, at::mul(weight, mask)));
        }
      }
    }
    if (!context->needs_input_grad(0)) return;
    at::Tensor by_input = by_value[0].defined() ? by_value[0].clone() : at::zeros_like(a.input);
    by_input.narrow(1, a.first, a.variables).add_(by_x);
    by[0] = by_input;
  }
};

std::tuple<at::Tensor, at::Tensor> masked_mlp_transform_autograd(const MaskedMlpTransformArguments& a) {
  const auto trained = [](const at::Tensor& tensor) { return tensor.requires_grad(); };
  const bool records = at::GradMode::is_enabled() &&
                       (trained(a.input) || std::any_of(a.weights.begin(), a.weights.end(), trained) ||
                        std::any_of(a.biases.begin(), a.biases.end(), trained));
  if (!records) return call_below_autograd(a);
  const variable_list result = MaskedMlpTransformFunction::apply(a, a.input, a.weights, a.biases);
  return {result[0], result[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CompositeExplicitAutograd, m) { implement<masked_mlp_transform>(m); }
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, Autograd, m) { implement<masked_mlp_transform_autograd>(m); }

}  // namespace ar_fast
