// One-pass sampling of a masked perceptron (MADE): the entry point, and what the CPU and CUDA implementations share.
// The schedule is in kernels/masked_mlp.h.
//
// Shapes: state (B, features), features = R_in + units of all layers but the last. The program has 4 numbers for each
// layer: the values that its first and second terms read and the value it adds, each -1 for none; then 1 if it is
// activated, else 0. weights, (units, units of the value read), and extents, (units) int32: one for each term of the
// program, in its order. biases: one for each layer, (units) or (B, units), or (0) for none. unit_ends: one (D) int32
// for each layer except the last. order (D) int64; in_offsets and out_offsets (D + 1) int64, and head_kinds (D, 2) for
// a per_variable head, all three by position; given and known (B, D) by variable. Columns of weights and units of the
// last layer are by position. by_input: one layer with one term; its weight is (R_in, R_out), from the last position to
// the first, and extents are empty. constants: those of a transform (kernels/transforms.h), which is named as the head;
// it needs given, the numbers that it is applied to, whereas known may be left out.
// Types: the weights have one of float32, float64, bfloat16, float16; state, given, values have the compute type; a
// bias has the weights' type or the compute type.
#pragma once

#include <string_view>
#include <tuple>
#include <vector>

#include "../kernels/masked_mlp.h"
#include "arguments.h"
#include "common.h"
#include "draws.h"
#include "head.h"

namespace ar_fast {

// Draws positions start ... stop-1 -> values (B, stop - start) by position, log_prob (B) float64 of the drawn
// variables, and the state after them.
struct MaskedMlpSampleArguments {
  static constexpr const char* op = "masked_mlp_sample";
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor state;
  at::TensorList weights, biases, extents, unit_ends;
  at::IntArrayRef program;
  OptionalTensor order, in_offsets, out_offsets, given, known;
  int64_t variables;
  std::string_view activation, head;
  int64_t levels;
  OptionalTensor head_kinds;
  int64_t seed, first_index, start, stop;
  double temperature;
  std::string_view algorithm;
  bool by_input;
  at::ArrayRef<double> constants;
};

constexpr const char* masked_mlp_name = MaskedMlpSampleArguments::op;

// --- shared by the implementations

// The source that stands for a context, in ops whose networks read one beside their values.
constexpr int64_t masked_mlp_context = -2;

// One layer of a program.
struct MaskedMlpStep {
  int64_t sources[masked_mlp_max_terms];
  int64_t add;
  bool activated;
  int64_t terms() const { return sources[0] == -1 ? 0 : sources[1] == -1 ? 1 : 2; }
};

std::vector<MaskedMlpStep> parse_program(const char* op, at::IntArrayRef program, bool with_context = false);

// Checks structure only: shapes, dtypes, devices. Never synchronises.
Head check_masked_mlp_sample(const MaskedMlpSampleArguments& a);

// Contiguous tensors of the kernels' types, the outputs, and the structure that points into them.
struct MaskedMlpTensors {
  std::vector<at::Tensor> kept;
  at::Tensor state;
  DrawTensors drawn;
  MaskedMlpSample sample;
};

// To be called after the checks.
MaskedMlpTensors prepare_masked_mlp(const MaskedMlpSampleArguments& a);

}  // namespace ar_fast
