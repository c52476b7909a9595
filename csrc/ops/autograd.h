// What the autograd functions of all ops share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string>

#include "arguments.h"
#include "common.h"

namespace ar_fast {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

inline bool requires_grad(const at::Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }
inline bool requires_grad(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() && requires_grad(*tensor);
}

// True if an autograd node has to be recorded; otherwise the op goes straight to its kernel.
template <typename... Tensors>
bool needs_graph(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}

// Calls the op itself, from its autograd function or if nothing is recorded.
template <typename Arguments>
typename Arguments::Result call_below_autograd(const Arguments& arguments) {
  at::AutoDispatchBelowADInplaceOrView guard;
  return call(arguments);
}

inline std::optional<at::Tensor> or_none(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

// Function::apply with an op's arguments; its forward has the members as parameters.
template <typename Function, typename Arguments>
auto apply(const Arguments& arguments) {
  return std::apply([](const auto&... values) { return Function::apply(values...); }, members(arguments));
}

// Keeps an op's arguments, and other tensors, for the backward pass.
template <typename Arguments>
void save(AutogradContext* context, const Arguments& arguments, const variable_list& others = {}) {
  variable_list tensors;
  int64_t index = 0;
  const auto keep = [&]<typename T>(const T& value) {
    ++index;
    if constexpr (std::is_same_v<T, at::Tensor>) {
      tensors.push_back(value);
    } else if constexpr (std::is_same_v<T, OptionalTensor>) {
      tensors.push_back(or_undefined(value));
    } else if constexpr (std::is_same_v<T, at::IntArrayRef>) {
      tensors.push_back(value.empty() ? at::Tensor() : at::tensor(value, at::kLong));
    } else if constexpr (std::is_same_v<T, std::string_view>) {
      context->saved_data[std::to_string(index)] = std::string(value);
    } else {
      context->saved_data[std::to_string(index)] = value;
    }
  };
  std::apply([&](const auto&... values) { (keep(values), ...); }, members(arguments));
  tensors.insert(tensors.end(), others.begin(), others.end());
  context->save_for_backward(std::move(tensors));
}

template <typename Arguments>
struct Saved {
  Arguments arguments;
  variable_list others;
};

// What was kept. Its strings are owned by the context, its lists of integers by the last of the other tensors.
template <typename Arguments>
Saved<Arguments> saved(AutogradContext* context) {
  Saved<Arguments> result{};
  variable_list tensors = context->get_saved_variables(), lists;
  auto next = tensors.begin();
  int64_t index = 0;
  const auto restore = [&]<typename T>(T& value) {
    ++index;
    if constexpr (std::is_same_v<T, at::Tensor>) {
      value = std::move(*next++);
    } else if constexpr (std::is_same_v<T, OptionalTensor>) {
      value = or_none(*next++);
    } else if constexpr (std::is_same_v<T, at::IntArrayRef>) {
      const at::Tensor list = *next++;
      if (!list.defined()) return;
      value = {list.const_data_ptr<int64_t>(), static_cast<size_t>(list.numel())};
      lists.push_back(list);
    } else if constexpr (std::is_same_v<T, std::string_view>) {
      value = context->saved_data[std::to_string(index)].toStringView();
    } else {
      value = context->saved_data[std::to_string(index)].template to<T>();
    }
  };
  std::apply([&](auto&... values) { (restore(values), ...); }, members(result.arguments));
  result.others.assign(std::make_move_iterator(next), std::make_move_iterator(tensors.end()));
  result.others.insert(result.others.end(), lists.begin(), lists.end());
  return result;
}

// Puts a view in the place of each of the first `count` inputs that requires a gradient. An input may have been computed
// from another one: a gradient by its view does not go on to that other one.
inline void separate(variable_list& inputs, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (requires_grad(inputs[i])) inputs[i] = inputs[i].view_as(inputs[i]);
  }
}

// Writes the gradients by those of the inputs that require one to the front of `out`; they can be differentiated again.
// The outputs must have been computed with grad mode on, from inputs that are separate.
inline void differentiable_gradients(const variable_list& outputs, const variable_list& grads,
                                     const variable_list& inputs, variable_list& out) {
  variable_list ends, end_grads, sources;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].requires_grad()) continue;
    ends.push_back(outputs[i]);
    end_grads.push_back(grads[i]);
  }
  for (const at::Tensor& input : inputs) {
    if (requires_grad(input)) sources.push_back(input);
  }
  const variable_list found = torch::autograd::grad(ends, sources, end_grads, /*retain_graph=*/true,
                                                    /*create_graph=*/true, /*allow_unused=*/true);
  for (size_t i = 0, next = 0; i < inputs.size(); ++i) {
    if (requires_grad(inputs[i])) out[i] = found[next++];
  }
}

// Passes the gradients of a backward pass through, and raises if they are differentiated again.
struct OnceDifferentiable : torch::autograd::Function<OnceDifferentiable> {
  static variable_list forward(AutogradContext* ctx, std::string op, at::TensorList gradients,
                               at::TensorList /*sources*/) {
    ctx->saved_data["op"] = std::move(op);
    variable_list result;
    for (const at::Tensor& gradient : gradients) result.push_back(gradient.view_as(gradient));
    return result;
  }
  static variable_list backward(AutogradContext* ctx, variable_list) {
    TORCH_CHECK(false, ctx->saved_data["op"].toStringRef(),
                ": its gradient cannot be differentiated again; for higher derivatives use ar_fast.reference");
  }
};

// `sources` are the tensors that the gradients depend on.
inline variable_list once_differentiable(const char* op, variable_list gradients, const variable_list& sources) {
  if (!at::GradMode::is_enabled()) return gradients;
  variable_list defined;
  for (const at::Tensor& gradient : gradients) {
    if (gradient.defined()) defined.push_back(gradient);
  }
  defined = OnceDifferentiable::apply(std::string(op), at::TensorList(defined), at::TensorList(sources));
  auto next = defined.begin();
  for (at::Tensor& gradient : gradients) {
    if (gradient.defined()) gradient = *next++;
  }
  return gradients;
}

}  // namespace ar_fast
