// Sampling of a NADE with input weights tied by offset: the entry point, and what the CPU and CUDA implementations
// share. The arithmetic is in kernels/offset_nade.h.
//
// Shapes: grid = (rows, columns, C), D = rows columns C; window = (up, side), T = up (2 side + 1) + side taps; state
// (B, reach), the values at the last reach = (up columns + side) C + C - 1 positions; in_weight ((T C + C - 1) V, H_1)
// with V = K for a categorical head, else 1; in_bias (H_1) or (B, H_1); weights (H_l, H_{l-1}) and biases (H_l) of the
// layers l = 2 ... L; out_weight (C K, H_L), or (D K, H_L) unless shared_output; out_bias; order (D) int64; given and
// known (B, D) by variable.
// Types: the weights, biases and out_bias have one of float32, float64, bfloat16, float16; in_bias has that type or the
// compute type; state, given and values have the compute type.
#pragma once

#include <string_view>
#include <tuple>
#include <vector>

#include "../kernels/offset_nade.h"
#include "arguments.h"
#include "common.h"
#include "draws.h"
#include "head.h"

namespace ar_fast {

// Draws positions start ... stop-1 -> values (B, stop - start) by position, log_prob (B) float64 of the drawn
// variables, and the state after them.
struct OffsetNadeSampleArguments {
  static constexpr const char* op = "offset_nade_sample";
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor state, in_weight, in_bias;
  at::TensorList weights, biases;
  at::Tensor out_weight, out_bias;
  OptionalTensor order, given, known;
  at::IntArrayRef grid, window;
  bool shared_output;
  std::string_view activation, head;
  int64_t levels;
  int64_t seed, first_index, start, stop;
  double temperature;
  std::string_view algorithm;
};

constexpr const char* offset_nade_name = OffsetNadeSampleArguments::op;

// --- shared by the implementations

// Checks structure only: shapes, dtypes, devices. Never synchronises.
Head check_offset_nade_sample(const OffsetNadeSampleArguments& a);

// Contiguous tensors of the kernels' types, the outputs, and the structure that points into them.
struct OffsetNadeTensors {
  std::vector<at::Tensor> kept;
  at::Tensor history;              // (B, reach + stop - start): the values from position start - reach on
  DrawTensors drawn;
  OffsetNadeSample sample;
  // The result of the op, after the kernel has run.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> result() const;
};

// To be called after the checks.
OffsetNadeTensors prepare_offset_nade_sample(const OffsetNadeSampleArguments& a);

}  // namespace ar_fast
