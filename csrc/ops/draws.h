// What all sampling ops share: the checks of the arguments that say what is drawn, the outputs, and the structure that
// the kernels take (kernels/draws.h). Every sampling op has these among its arguments:
//
//   Tensor state                     what the kernel continues from; its first dimension is the batch
//   Tensor? order                    (D) int64, the variable at each position
//   Tensor? given, known             (B, D) by variable: values of the compute type, bool
//   str head, int levels, Tensor? head_kinds
//   int seed, first_index, start, stop, float temperature
//
// and some have int first_position, int top_k, float top_p. All return values (B, stop - start) by position, log_prob
// (B) float64 of the drawn variables, and the state after them.
#pragma once

#include <tuple>

#include "../kernels/draws.h"
#include "common.h"

namespace ar_fast {

using SampleResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// These arguments, for any sampling op.
struct DrawArguments {
  const char* op;
  const at::Tensor& state;
  const OptionalTensor &order, &given, &known, &head_kinds;
  int64_t seed, first_index, start, stop;
  double temperature;
  int64_t first_position = 0, top_k = 0;
  double top_p = 1;
  const char* state_name = "state";
  bool transforms = false;  // given holds the numbers that a transform is applied to; known may be left out
};

template <typename Arguments>
DrawArguments draw_arguments(const Arguments& a) {
  static const OptionalTensor none;
  const OptionalTensor* head_kinds = &none;
  if constexpr (requires { a.head_kinds; }) head_kinds = &a.head_kinds;
  return {Arguments::op, a.state, a.order, a.given, a.known, *head_kinds, a.seed, a.first_index, a.start, a.stop,
          a.temperature};
}

// For an op whose draws may be truncated: `categories` is how many a variable has if the head is categorical.
void check_truncation(const DrawArguments& a, const Head& head, const c10::SymInt& categories);

// Checks structure only. `type` is the compute type; order must be on the device of `weight`.
void check_draws(const DrawArguments& a, const c10::SymInt& variables, at::ScalarType type, const char* weight_name,
                 const at::Tensor& weight);

// Contiguous tensors of the kernels' types, the outputs, and the structure that points into them.
struct DrawTensors {
  at::Tensor order, given, known, head_kinds, values, log_prob, coded;
  Draws draws{};
};

// To be called after the checks. head.kinds points to head_kinds: if these are not by position, the op says so in the
// structure or replaces them.
DrawTensors prepare_draws(const DrawArguments& a, const Head& head, int64_t variables);

// Empty outputs of the op, for its fake implementation.
SampleResult empty_samples(const DrawArguments& a);

}  // namespace ar_fast
