// The NADE ops: their entry points, and what the CPU and CUDA implementations share. The arithmetic is in
// kernels/nade.h.
//
// Shapes: x (B, D); in_weight (R_in, H); in_bias (H) or (B, H); out_weight (R_out, H); out_bias (R_out); order (D)
// int64; in_offsets, out_offsets (D + 1) int64; activation_scale (D).
// Types: the weights, biases and activation_scale have one of float32, float64, bfloat16, float16; parameters, log_prob
// and sampled values have the compute type, float32 (float64 for float64). x is bool, integer, or floating of the
// weights' type or the compute type. If R_in = D, x scales the row of its variable; else x is an integer category in
// [0, rows of its variable) and selects a row. A floating x with in_offsets holds both: categories for variables with
// several rows, values for variables with one. A per_variable head takes such an x.
#pragma once

#include <string_view>
#include <tuple>

#include "../kernels/nade.h"
#include "arguments.h"
#include "common.h"
#include "draws.h"
#include "head.h"

namespace ar_fast {

// -> parameters (B, R_out)
struct NadeArguments {
  static constexpr const char* op = "nade";
  using Result = at::Tensor;
  at::Tensor x, in_weight, in_bias, out_weight, out_bias;
  OptionalTensor order, in_offsets, out_offsets, activation_scale;
  std::string_view activation, algorithm;
};

// -> grad_x (B, D) or (0), grad_in_weight, grad_in_bias, grad_out_weight, grad_activation_scale (D) or (0)
struct NadeBackwardArguments {
  static constexpr const char* op = "nade_backward";
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor grad, x, in_weight, in_bias, out_weight;
  OptionalTensor order, in_offsets, out_offsets, activation_scale;
  std::string_view activation;
  bool needs_x, needs_activation_scale;
  std::string_view algorithm;
};

// log-likelihood -> (B), or (B, D) by variable
struct NadeLogProbArguments {
  static constexpr const char* op = "nade_log_prob";
  using Result = at::Tensor;
  at::Tensor x, in_weight, in_bias, out_weight, out_bias;
  OptionalTensor order, in_offsets, out_offsets, activation_scale;
  std::string_view activation, head;
  int64_t levels;
  OptionalTensor head_kinds;
  bool per_variable;
  std::string_view algorithm;
};

// -> log_prob, parameters (B, R_out) or (0)
struct NadeLogProbForwardArguments {
  static constexpr const char* op = "nade_log_prob_forward";
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor x, in_weight, in_bias, out_weight, out_bias;
  OptionalTensor order, in_offsets, out_offsets, activation_scale;
  std::string_view activation, head;
  int64_t levels;
  OptionalTensor head_kinds;
  bool per_variable, keep_parameters;
  std::string_view algorithm;
};

// Draws positions start ... stop-1 of `variables` variables from state (B, H) -> values (B, stop - start) by position,
// log_prob (B) float64 of the drawn variables, and the state after them.
struct NadeSampleArguments {
  static constexpr const char* op = "nade_sample";
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor state, in_weight, out_weight, out_bias;
  OptionalTensor order, in_offsets, out_offsets, activation_scale, given, known;
  int64_t variables;
  std::string_view activation, head;
  int64_t levels;
  OptionalTensor head_kinds;
  int64_t seed, first_index, start, stop;
  double temperature;
  std::string_view algorithm;
};

// --- shared by the implementations

// (D + 1) int64, the first row of each variable; or none, where a weight has as many rows for each.
void check_offsets(const char* op, const char* name, const OptionalTensor& offsets, const c10::SymInt& variables,
                   const at::Tensor& weight);
void check_rows(const char* op, const char* name, const at::Tensor& weight, const char* offsets_name,
                const OptionalTensor& offsets, const c10::SymInt& variables);

// Contiguous tensors of the kernels' types, and the structures that point into them.
struct NadeTensors {
  at::Tensor x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale;
  NadeModel model;
  NadeInput input;
};

// The checks of each op, its outputs, and the structures that the kernels take.
struct NadeForwardTensors : NadeTensors {
  at::Tensor head_kinds, parameters, log_prob;
  NadeForward output{};
};

NadeForwardTensors prepare_nade_forward(const NadeArguments& a);

NadeForwardTensors prepare_nade_log_prob(const NadeLogProbForwardArguments& a);

struct NadeBackwardTensors : NadeTensors {
  at::Tensor grad, grad_x, grad_in_weight, grad_in_bias, grad_out_weight, grad_activation_scale;
  NadeBackward output{};
  // The result of the op, after the kernels have run.
  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> result() const;
};

NadeBackwardTensors prepare_nade_backward(const NadeBackwardArguments& a);

struct NadeSampleTensors : NadeTensors {
  at::Tensor next;
  DrawTensors drawn;
  NadeSample sample{};
};

NadeSampleTensors prepare_nade_sample(const NadeSampleArguments& a);

}  // namespace ar_fast
