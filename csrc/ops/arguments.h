// The arguments of an op are one struct: an aggregate with one member per argument, in the order of the schema. It also
// has the op's name and its result type:
//
//   struct ThingArguments {
//     static constexpr const char* op = "thing";
//     using Result = at::Tensor;
//     at::Tensor x;
//     OptionalTensor offsets;
//     std::string_view head;
//   };
//
// Tensors are at::Tensor or OptionalTensor, lists at::TensorList, at::IntArrayRef or at::ArrayRef<double>, strings
// std::string_view: lists and strings are views, valid during the call. torch takes arguments one by one: this file
// converts the struct.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>
#include <c10/util/MaybeOwned.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "library.h"

namespace ar_fast {

struct AnyMember {
  template <typename T>
  operator T() const;
};

template <typename Arguments, typename... Members>
constexpr size_t count_members() {
  if constexpr (requires { Arguments{Members{}..., AnyMember{}}; }) {
    return count_members<Arguments, Members..., AnyMember>();
  } else {
    return sizeof...(Members);
  }
}

// A tuple of references to the members.
template <typename Arguments>
auto members(Arguments& arguments) {
  constexpr size_t count = count_members<std::remove_const_t<Arguments>>();
#define AR_FAST_MEMBERS(number, ...)    \
  if constexpr (count == number) {      \
    auto& [__VA_ARGS__] = arguments;    \
    return std::tie(__VA_ARGS__);       \
  }
  AR_FAST_MEMBERS(6, a, b, c, d, e, f)
  AR_FAST_MEMBERS(7, a, b, c, d, e, f, g)
  AR_FAST_MEMBERS(8, a, b, c, d, e, f, g, h)
  AR_FAST_MEMBERS(9, a, b, c, d, e, f, g, h, i)
  AR_FAST_MEMBERS(10, a, b, c, d, e, f, g, h, i, j)
  AR_FAST_MEMBERS(11, a, b, c, d, e, f, g, h, i, j, k)
  AR_FAST_MEMBERS(12, a, b, c, d, e, f, g, h, i, j, k, l)
  AR_FAST_MEMBERS(13, a, b, c, d, e, f, g, h, i, j, k, l, m)
  AR_FAST_MEMBERS(14, a, b, c, d, e, f, g, h, i, j, k, l, m, n)
  AR_FAST_MEMBERS(15, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o)
  AR_FAST_MEMBERS(16, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)
  AR_FAST_MEMBERS(17, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q)
  AR_FAST_MEMBERS(18, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r)
  AR_FAST_MEMBERS(19, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s)
  AR_FAST_MEMBERS(20, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t)
  AR_FAST_MEMBERS(21, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u)
  AR_FAST_MEMBERS(22, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v)
  AR_FAST_MEMBERS(23, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w)
  AR_FAST_MEMBERS(24, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x)
  AR_FAST_MEMBERS(30, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z, aa, bb, cc, dd)
#undef AR_FAST_MEMBERS
  static_assert((count >= 6 && count <= 24) || count == 30, "add a line for a struct with this many members");
}

// The type of a member in the dispatcher, and in Python.
template <typename T>
using Flat = std::conditional_t<std::is_same_v<T, at::Tensor> || std::is_same_v<T, std::optional<at::Tensor>>,
                                const T&, T>;
template <typename T>
using FromPython = std::conditional_t<
    std::is_same_v<T, at::TensorList>, const std::vector<at::Tensor>&,
    std::conditional_t<std::is_same_v<T, at::IntArrayRef>, const std::vector<int64_t>&,
                       std::conditional_t<std::is_same_v<T, at::ArrayRef<double>>, const std::vector<double>&,
                                          Flat<T>>>>;

// The struct for a call whose tensors belong to the caller: their references are not counted, since counting would take
// a tenth of the call of a small layer. Copies of its members are tensors like any other.
template <typename Arguments>
class Borrowed {
 public:
  template <typename... Values>
  explicit Borrowed(const Values&... values) : arguments_{borrow(values)...} {}
  ~Borrowed() {
    std::apply([](auto&... values) { (give_back(values), ...); }, members(arguments_));
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  const Arguments& operator*() const { return arguments_; }

 private:
  using Traits = c10::MaybeOwnedTraits<at::Tensor>;

  template <typename T>
  static T borrow(const T& value) {
    if constexpr (std::is_same_v<T, at::Tensor>) {
      return Traits::createBorrow(value);
    } else if constexpr (std::is_same_v<T, std::optional<at::Tensor>>) {
      return value.has_value() ? T(Traits::createBorrow(*value)) : T();
    } else {
      return value;
    }
  }
  template <typename T>
  static void give_back(T& value) {
    if constexpr (std::is_same_v<T, at::Tensor>) {
      Traits::destroyBorrow(value);
    } else if constexpr (std::is_same_v<T, std::optional<at::Tensor>>) {
      if (value.has_value()) Traits::destroyBorrow(*value);
    }
  }

  Arguments arguments_;
};

// Whether a tensor among an op's arguments has a tangent of forward-mode differentiation.
inline bool has_tangent(const at::Tensor& tensor) { return tensor.defined() && tensor._fw_grad(/*level=*/0).defined(); }
inline bool has_tangent(const std::optional<at::Tensor>& tensor) { return tensor.has_value() && has_tangent(*tensor); }
inline bool has_tangent(at::TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor& tensor) { return has_tangent(tensor); });
}
template <typename Other>
bool has_tangent(const Other&) {
  return false;
}

template <typename Arguments, typename Members = decltype(members(std::declval<const Arguments&>()))>
struct Op;

template <typename Arguments, typename... T>
struct Op<Arguments, std::tuple<const T&...>> {
  using Result = typename Arguments::Result;

  // Calls the op through the dispatcher, as torch.ops does.
  static Result call(const Arguments& arguments) {
    return std::apply([](const T&... values) { return dispatched().call(values...); }, members(arguments));
  }
  static Result call_from_python(FromPython<T>... values) { return dispatched().call(values...); }

  // Every implementation is called here. None of them supports a tangent, so all would drop it.
  template <Result (*function)(const Arguments&)>
  static Result run(Flat<T>... values) {
    TORCH_CHECK(!(has_tangent(values) || ...), Arguments::op,
                ": tensors must have no tangent of forward-mode differentiation except in ar_fast.functional, which "
                "supports it, got one that has");
    const Borrowed<Arguments> arguments(values...);
    return function(*arguments);
  }

 private:
  static const auto& dispatched() {
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow((AR_FAST_STRINGIFY(AR_FAST_LIBRARY) "::" + std::string(Arguments::op)).c_str(), "")
            .template typed<Result(Flat<T>...)>();
    return op;
  }
};

template <typename Arguments>
typename Arguments::Result call(const Arguments& arguments) {
  return Op<Arguments>::call(arguments);
}

// Registers Result function(const Arguments&) as the op's implementation.
template <auto function>
struct Implementation;
template <typename Result, typename Arguments, Result (*function)(const Arguments&)>
struct Implementation<function> {
  static void add_to(torch::Library& m) {
    m.impl(Arguments::op, TORCH_FN((Op<Arguments>::template run<function>)));
  }
};
template <auto function>
void implement(torch::Library& m) {
  Implementation<function>::add_to(m);
}

}  // namespace ar_fast
