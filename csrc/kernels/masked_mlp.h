// One-pass sampling of a masked multi-layer perceptron (MADE): its contract, CPU and CUDA.
//
// Everything is in order of position. The variable at position p owns the columns [in_offsets[p], in_offsets[p+1]) of
// the first weight: one column takes its value, of several the one of its category takes 1 and the others 0. It owns
// the rows [out_offsets[p], out_offsets[p+1]) of the last weight: the parameters of the head. The units of every hidden
// layer are sorted by degree. Unit u of layer l sees the first extents[l][u] units of layer l - 1 (columns for l = 0);
// extents never decrease. The units [unit_ends[l][p-1], unit_ends[l][p]) of hidden layer l
// become computable when the first p variables are known, so each unit is computed exactly once.
// Source: Germain, Gregor, Murray, Larochelle, "MADE", ICML 2015; the schedule is ours.
//
// The order of a sum over inputs is fixed by the extents alone (ascending on the CPU, by lanes of a warp on CUDA), so a
// row does not depend on batch, tile and threads.
#pragma once

#include "head.h"
#include "philox.h"
#include "types.h"

namespace ar_fast {

constexpr int masked_mlp_max_layers = 16;

enum class MlpActivation : int32_t {
  relu = 0,
  sigmoid = 1,
  tanh = 2,
  elu = 3,
  softplus = 4,
  silu = 5,
  gelu = 6,
  leaky_relu = 7,
};

struct MaskedMlpLayer {
  int64_t units;                   // rows of weight; R_out for the last layer
  const void* weight;              // [units, units of the layer before (R_in for the first)] storage, contiguous
  const void* bias;                // [units] or, first layer only, [B, units] compute
  int64_t bias_stride;             // 0 or units
  const int32_t* extents;          // [units]
  const int32_t* unit_ends;        // [D] computable once the first p variables are known; null for the last layer
};

struct MaskedMlpSample {
  ScalarType storage;              // of the weights; compute type as in nade.h
  MlpActivation activation;
  int64_t batch;                   // B
  int64_t variables;               // D
  int64_t in_rows;                 // R_in
  const int64_t* in_offsets;       // [D + 1] by position; null = R_in / D columns each
  const int64_t* out_offsets;      // [D + 1] by position; null = R_out / D rows each
  Head head;
  int64_t hidden_layers;           // L; layers[L] is the output layer
  MaskedMlpLayer layers[masked_mlp_max_layers + 1];
  int64_t start, stop;             // positions
  uint64_t seed;
  int64_t first_index;             // sample index of row 0
  double temperature;              // > 0; changes the draw as head.h says, not log_prob
  const int64_t* order;            // [D] variable at position p, or null; for the random counter, given and known
  const void* given;               // [B, D] compute, by variable; null if nothing is known
  const uint8_t* known;            // [B, D] by variable; null if nothing is known
  void* state;                     // [B, R_in + sum of hidden units] compute: the columns, then each layer's activations
  void* values;                    // [B, stop - start] compute, by position, written
  void* log_prob;                  // [B] double: sum over the drawn variables at temperature 1, written
};

// The columns or rows of the variable at a position.
struct MaskedMlpRange {
  int64_t begin, end;
};

AR_FAST_HOST_DEVICE inline MaskedMlpRange masked_mlp_columns(const MaskedMlpSample& sample, int64_t position) {
  if (sample.in_offsets != nullptr) return {sample.in_offsets[position], sample.in_offsets[position + 1]};
  const int64_t each = sample.in_rows / sample.variables;
  return {position * each, (position + 1) * each};
}

AR_FAST_HOST_DEVICE inline MaskedMlpRange masked_mlp_parameters(const MaskedMlpSample& sample, int64_t position) {
  if (sample.out_offsets != nullptr) return {sample.out_offsets[position], sample.out_offsets[position + 1]};
  const int64_t each = sample.layers[sample.hidden_layers].units / sample.variables;
  return {position * each, (position + 1) * each};
}

}  // namespace ar_fast
