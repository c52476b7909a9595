// The autocast rule of the ops that compute in float32 whatever autocast says: samplers, which have one value after the
// other in their state, and transforms, whose inverse must find the number again. What came in 16 bits out of a layer
// under autocast is widened; weights that are stored in 16 bits stay so. nade.cpp, head.cpp and masked_linear.cpp have
// rules of their own.
#pragma once

#include <ATen/autocast_mode.h>

#include <deque>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "common.h"

namespace ar_fast {

inline bool has_16_bits(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf;
}

// The members of a call's arguments in float32 where they have 16 bits.
class Widened {
 public:
  void operator()(at::Tensor& tensor) const {
    if (tensor.defined() && has_16_bits(tensor)) tensor = tensor.to(at::kFloat);
  }
  void operator()(OptionalTensor& tensor) const {
    if (tensor.has_value()) (*this)(*tensor);
  }
  void operator()(at::TensorList& tensors) {
    auto& own = lists_.emplace_back(tensors.begin(), tensors.end());
    for (auto& tensor : own) (*this)(tensor);
    tensors = own;
  }
  template <typename Other>
  void operator()(Other&) const {}

 private:
  std::deque<std::vector<at::Tensor>> lists_;
};

// Whether the weights that give a sampler its dtype have 16 bits.
template <typename Arguments>
bool has_16_bit_weights(const Arguments& a) {
  const auto first = [](at::TensorList weights) { return !weights.empty() && has_16_bits(weights[0]); };
  if constexpr (requires { a.in_weight; }) return has_16_bits(a.in_weight);
  else if constexpr (requires { a.weight; }) return has_16_bits(a.weight);
  else if constexpr (requires { a.recurrent_weights; }) return first(a.recurrent_weights);
  else if constexpr (requires { a.state; }) return first(a.weights);
  else return false;
}

template <typename Arguments>
typename Arguments::Result float32_autocast(const Arguments& arguments) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  Arguments a = arguments;
  Widened widen;
  if (has_16_bit_weights(a)) {
    // States and values are of the compute type even then.
    if constexpr (requires { a.state; }) widen(a.state);
    if constexpr (requires { a.cell_state; }) widen(a.cell_state);
    if constexpr (requires { a.last; }) widen(a.last);
    if constexpr (requires { a.given; }) widen(a.given);
  } else {
    std::apply([&](auto&... values) { (widen(values), ...); }, members(a));
  }
  return call(a);
}

}  // namespace ar_fast
