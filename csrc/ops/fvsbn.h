// FVSBN sampling on CUDA; on the CPU masked_mlp_sample draws from the same weight, by_input. The arithmetic and the
// storage by place (place q is position D - 1 - q) are in kernels/fvsbn.h. The op for evaluation is
// masked_linear_grad_input.
//
// Shapes: state (B, R_out); weight (R_in, R_out), R_in = R_out for a categorical head and D otherwise; order (D) int64;
// offsets (D + 1) int64, the first parameter of each place, or none if each has R_out / D; given and known (B, D) by
// variable. For a per_variable head R_in is any number, in_offsets (D + 1) int64 has the first row of each place, and
// head_kinds (D, 2) int64 is by place.
// Types: weight float32, float64, bfloat16 or float16; state, given, values have the compute type.
#pragma once

#include <string_view>
#include <tuple>

#include "../kernels/fvsbn.h"
#include "arguments.h"
#include "common.h"
#include "draws.h"
#include "head.h"

namespace ar_fast {

// Draws positions start ... stop-1 -> values (B, stop - start) by position, log_prob (B) float64 of the drawn
// variables, and the state after them.
struct FvsbnSampleArguments {
  static constexpr const char* op = "fvsbn_sample";
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor state, weight;
  OptionalTensor order, offsets, in_offsets, given, known;
  int64_t variables;
  std::string_view head;
  int64_t levels;
  OptionalTensor head_kinds;
  int64_t seed, first_index, start, stop;
  double temperature;
  std::string_view algorithm;
};

constexpr const char* fvsbn_name = FvsbnSampleArguments::op;

// Checks structure only: shapes, dtypes, devices. Never synchronises.
Head check_fvsbn_sample(const FvsbnSampleArguments& a);

// Contiguous tensors of the kernels' types, the outputs, and the structure that points into them.
struct FvsbnSampleTensors {
  at::Tensor weight, offsets, in_offsets, head_kinds, next;
  DrawTensors drawn;
  FvsbnSample sample{};
};

// To be called after the checks.
FvsbnSampleTensors prepare_fvsbn_sample(const FvsbnSampleArguments& a);

}  // namespace ar_fast
