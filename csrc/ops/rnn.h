// Sampling of a recurrent model: the entry point, and what the CPU and CUDA implementations share. The arithmetic is in
// kernels/rnn.h.
//
// Shapes: state (L, B, H), and cell_state the same, only for an LSTM; last, finished, limits (B); in_table (V, G H),
// with V = K for a categorical head, else 1, and G the gates of the cell; in_bias (G H) or (B, G H); L
// recurrent_weights (G H, H) and recurrent_biases (G H); L - 1 in_weights (G H, H) and in_biases (G H), for the layers
// after the first; out_weight (K, H), out_bias (K); order (D) int64; given and known (B, D) by variable.
// Types: the weights have one of float32, float64, bfloat16, float16; in_table and the biases have that type or the
// compute type; state, cell_state, last, given and values have the compute type; finished bool, limits int64.
#pragma once

#include <string_view>
#include <tuple>
#include <vector>

#include "../kernels/rnn.h"
#include "arguments.h"
#include "common.h"
#include "draws.h"
#include "head.h"

namespace ar_fast {

// values (B, stop - start) by position; log_prob (B) float64 of the drawn variables; state; cell_state, which is (0)
// except for an LSTM; last; finished
using RnnSampleResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Draws positions start ... stop-1.
struct RnnSampleArguments {
  static constexpr const char* op = "rnn_sample";
  using Result = RnnSampleResult;
  at::Tensor state;
  OptionalTensor cell_state;
  at::Tensor last;
  OptionalTensor finished;
  at::Tensor in_table, in_bias;
  at::TensorList in_weights, in_biases, recurrent_weights, recurrent_biases;
  at::Tensor out_weight, out_bias;
  OptionalTensor order, given, known, limits;
  int64_t variables;
  std::string_view cell, head;
  int64_t levels;
  int64_t seed, first_index, first_position, start, stop;
  double temperature;
  int64_t top_k;
  double top_p;
  int64_t stop_token;
  std::string_view algorithm;
};

constexpr const char* rnn_name = RnnSampleArguments::op;

// --- shared by the implementations

RnnCell parse_cell(std::string_view name);

// Checks structure only: shapes, dtypes, devices. Never synchronises.
Head check_rnn_sample(const RnnSampleArguments& a);

// Contiguous tensors of the kernels' types, the outputs, and the structure that points into them.
struct RnnTensors {
  std::vector<at::Tensor> kept;
  at::Tensor state, cell_state, last, finished;
  DrawTensors drawn;
  RnnSample sample;
  // The result of the op, after the kernel has run.
  RnnSampleResult result() const;
};

// To be called after the checks.
RnnTensors prepare_rnn_sample(const RnnSampleArguments& a);

}  // namespace ar_fast
