// Sampling of an orderless NADE of several layers: the entry point, and what the CPU and the CUDA implementations
// share. The arithmetic is in kernels/deep_nade.h.
//
// Shapes: state (B, H_1); in_weight (R_in, H_1): D rows, or one for each category of each variable; mask_weight
// (D, H_1); weights (H_l, H_{l-1}) and biases (H_l) of the layers l = 2 ... L; out_weight (R_out, H_L); out_bias
// (R_out); order (D) int64; in_offsets, out_offsets (D + 1) int64, the first row of each variable, or none where each
// has as many; given and known (B, D) by variable.
// Types: the weights and biases share one of float32, float64, bfloat16, float16; state, given, values have the compute
// type.
#pragma once

#include <string_view>
#include <tuple>
#include <vector>

#include "../kernels/deep_nade.h"
#include "arguments.h"
#include "common.h"
#include "draws.h"
#include "head.h"

namespace ar_fast {

// Draws positions start ... stop-1 of `variables` variables -> values (B, stop - start) by position, log_prob (B)
// float64 of the drawn ones, the state after them
struct DeepNadeSampleArguments {
  static constexpr const char* op = "deep_nade_sample";
  using Result = SampleResult;
  at::Tensor state, in_weight, mask_weight;
  at::TensorList weights, biases;
  at::Tensor out_weight, out_bias;
  OptionalTensor order, in_offsets, out_offsets, given, known;
  int64_t variables;
  std::string_view activation, head;
  int64_t levels;
  OptionalTensor head_kinds;
  int64_t seed, first_index, start, stop;
  double temperature;
};

constexpr const char* deep_nade_name = DeepNadeSampleArguments::op;

// --- shared by the implementations

// Structure only: shapes, dtypes, devices. Never synchronises.
Head check_deep_nade_sample(const DeepNadeSampleArguments& a);

// Contiguous tensors of the kernels' types, the outputs, and the structure that points into them.
struct DeepNadeTensors {
  std::vector<at::Tensor> kept;
  at::Tensor next;
  DrawTensors drawn;
  DeepNadeSample sample{};
};

// After the checks. most_parameters is R_out where out_offsets are given: only the device knows better.
DeepNadeTensors prepare_deep_nade_sample(const DeepNadeSampleArguments& a);

}  // namespace ar_fast
