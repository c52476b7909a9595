// ARMLP sampling: the entry point, and what the CPU and CUDA implementations share. The arithmetic and the storage in
// blocks of networks are in kernels/armlp.h.
//
// Shapes: state (B, D) by position; in_weight (rows, H); block_starts (ceil(D / 8) + 1) int64; in_bias (D, H) or
// (B, D, H); out_weight (R_out, H); out_bias (R_out); order (D) int64; offsets (D + 1) int64, the first parameter of
// each position, or none if each has R_out / D; given and known (B, D) by variable.
// For a per_variable head, in_offsets (D + 1) int64 has the first input row of each position, and head_kinds (D, 2)
// int64 is by position.
// Types: the weights have one of float32, float64, bfloat16, float16; a bias has the weights' type or the compute
// type; state, given, values have the compute type.
#pragma once

#include <string_view>
#include <tuple>

#include "../kernels/armlp.h"
#include "arguments.h"
#include "common.h"
#include "draws.h"
#include "head.h"

namespace ar_fast {

// Draws positions start ... stop-1 -> values (B, stop - start) by position, log_prob (B) float64 of the drawn
// variables, and the state after them.
struct ArmlpSampleArguments {
  static constexpr const char* op = "armlp_sample";
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor state, in_weight, block_starts, in_bias, out_weight, out_bias;
  OptionalTensor order, offsets, in_offsets, given, known;
  std::string_view activation, head;
  int64_t levels;
  OptionalTensor head_kinds;
  int64_t seed, first_index, start, stop;
  double temperature;
  std::string_view algorithm;
};

constexpr const char* armlp_name = ArmlpSampleArguments::op;

// --- shared by the implementations

// Checks structure only: shapes, dtypes, devices. Never synchronises.
Head check_armlp_sample(const ArmlpSampleArguments& a);

// Contiguous tensors of the kernels' types, the outputs, and the structure that points into them.
struct ArmlpSampleTensors {
  at::Tensor in_weight, block_starts, in_bias, out_weight, out_bias, offsets, in_offsets, next;
  DrawTensors drawn;
  ArmlpSample sample{};
};

// To be called after the checks.
ArmlpSampleTensors prepare_armlp_sample(const ArmlpSampleArguments& a);

}  // namespace ar_fast
