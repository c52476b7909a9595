// The head ops: the log-likelihood of values under given parameters, and what all ops with a head share. The arithmetic
// is in kernels/head.h.
//
// Shapes: parameters (B, R_out), those of a variable side by side; x (B, D); offsets (D + 1) int64, the first parameter
// of each variable, or none if each has R_out / D; head_kinds (D, 2) int64, for a per_variable head: the HeadKind and
// the levels of the variable at each place of offsets. Types: parameters float32 or float64; x bool, integer or
// floating.
#pragma once

#include <string_view>
#include <tuple>

#include "../kernels/head.h"
#include "arguments.h"
#include "common.h"

namespace ar_fast {

// -> log p of each variable (B, D)
struct HeadLogProbArguments {
  static constexpr const char* op = "head_log_prob";
  using Result = at::Tensor;
  at::Tensor parameters, x;
  OptionalTensor offsets;
  std::string_view head;
  int64_t levels;
  OptionalTensor head_kinds;
};

// grad (B, D), or (B) for the gradient of the sum over variables -> grad_parameters (B, R_out), grad_x (B, D)
struct HeadLogProbBackwardArguments {
  static constexpr const char* op = "head_log_prob_backward";
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor grad, parameters, x;
  OptionalTensor offsets;
  std::string_view head;
  int64_t levels;
  OptionalTensor head_kinds;
};

// --- shared by the implementations

// For ops that do not take a per_variable head.
Head parse_head(const char* op, std::string_view name, int64_t levels);

// Reads no tensor: with_kinds adds the pointer that the kernels read.
Head parse_head(const char* op, std::string_view name, int64_t levels, const OptionalTensor& head_kinds);
Head with_kinds(Head head, const OptionalTensor& head_kinds, at::Tensor& kept);

// `other` is the tensor whose device head_kinds must share.
void check_head_kinds(const char* op, const OptionalTensor& head_kinds, const c10::SymInt& variables,
                      const char* other_name, const at::Tensor& other);

// Checks the first input row of each variable, which only a per_variable head has.
void check_in_offsets(const char* op, const Head& head, const OptionalTensor& in_offsets, const c10::SymInt& variables,
                      const char* other_name, const at::Tensor& other);

// Checks how many parameters the variables may have, as far as shapes tell. `owner` is the name of the tensor whose
// rows or columns they are, and `rows` is their number.
void check_head_rows(const char* op, const Head& head, const char* owner, const c10::SymInt& rows,
                     const c10::SymInt& variables, const OptionalTensor& offsets);

// Contiguous tensors of the kernels' types, and the structure that points into them.
struct HeadTensors {
  at::Tensor parameters, x, offsets, head_kinds;
  HeadRows rows;
};

// For either op, after its checks.
template <typename Arguments>
HeadTensors prepare_head(const Arguments& a);

// grad as the backward kernel takes it; to be called after its checks.
at::Tensor prepare_head_grad(const HeadTensors& tensors, const at::Tensor& grad);

}  // namespace ar_fast
