// What every sampling op shares: the checks of the arguments that say what is drawn, the outputs, and the structure
// that the kernels take (kernels/draws.h). A sampling op takes, among its own arguments,
//
//   Tensor state                     what the kernel goes on from, its first dimension the batch
//   Tensor? order                    (D) int64, the variable at each position
//   Tensor? given, known             (B, D) by variable: values of the compute type, bool
//   str head, int levels, Tensor? head_kinds
//   int seed, first_index, start, stop, float temperature
//
// and perhaps int first_position, int top_k, float top_p;
// and returns values (B, stop - start) by position, log_prob (B) float64 of the drawn ones, the state after them.
#pragma once

#include <tuple>

#include "../kernels/draws.h"
#include "common.h"

namespace ar_fast {

using SampleResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Those arguments, of any sampling op.
struct DrawArguments {
  const char* op;
  const at::Tensor& state;
  const OptionalTensor &order, &given, &known, &head_kinds;
  int64_t seed, first_index, start, stop;
  double temperature;
  int64_t first_position = 0, top_k = 0;
  double top_p = 1;
  const char* state_name = "state";
};

template <typename Arguments>
DrawArguments draw_arguments(const Arguments& a) {
  static const OptionalTensor none;
  const OptionalTensor* head_kinds = &none;
  if constexpr (requires { a.head_kinds; }) head_kinds = &a.head_kinds;
  return {Arguments::op, a.state, a.order, a.given, a.known, *head_kinds, a.seed, a.first_index, a.start, a.stop,
          a.temperature};
}

// Of an op whose draws may be truncated: `categories` is how many a variable has, if it has a categorical head.
void check_truncation(const DrawArguments& a, const Head& head, const c10::SymInt& categories);

// Structure only. `type` is the compute type; `weight` is what order is to be beside.
void check_draws(const DrawArguments& a, const c10::SymInt& variables, at::ScalarType type, const char* weight_name,
                 const at::Tensor& weight);

// Contiguous tensors of the kernels' types, the outputs, and the structure that points into them.
struct DrawTensors {
  at::Tensor order, given, known, head_kinds, values, log_prob;
  Draws draws{};
};

// After the checks. head.kinds are head_kinds as they are: where those go by something else than by position, the op
// says so in the structure or replaces them.
DrawTensors prepare_draws(const DrawArguments& a, const Head& head, int64_t variables);

// What the op returns, for its fake implementation.
SampleResult empty_samples(const DrawArguments& a);

}  // namespace ar_fast
