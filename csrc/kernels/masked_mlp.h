// One-pass sampling of a masked multi-layer perceptron (MADE with a Bernoulli head): its contract, CPU and CUDA.
//
// Everything is in order of position: column p of the first weight is the variable at position p, and the units of
// every hidden layer are sorted by degree. Unit u of layer l sees the first extents[l][u] units of layer l - 1
// (variables for l = 0); extents never decrease. The units [unit_ends[l][p-1], unit_ends[l][p]) of hidden layer l
// become computable when the first p variables are known, so each unit is computed exactly once.
// Source: Germain, Gregor, Murray, Larochelle, "MADE", ICML 2015; the schedule is ours.
//
// The order of a sum over inputs is fixed by the extents alone (ascending on the CPU, by lanes of a warp on CUDA), so a
// row does not depend on batch, tile and threads.
#pragma once

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
  int64_t units;                   // rows of weight; D for the last layer
  const void* weight;              // [units, units of the layer before (D for the first)] storage, contiguous
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
  int64_t hidden_layers;           // L; layers[L] is the output layer
  MaskedMlpLayer layers[masked_mlp_max_layers + 1];
  int64_t start, stop;             // positions
  uint64_t seed;
  int64_t first_index;             // sample index of row 0
  double temperature;              // > 0; divides the logit of the draw, not of log_prob
  const int64_t* order;            // [D] variable at position p, or null; for the random counter, given and known
  const void* given;               // [B, D] compute, by variable; null if nothing is known
  const uint8_t* known;            // [B, D] by variable; null if nothing is known
  void* state;                     // [B, D + sum of hidden units] compute: x by position, then each layer's activations
  void* values;                    // [B, stop - start] compute, by position, written
  void* log_prob;                  // [B] double: sum over the drawn variables at temperature 1, written
};

}  // namespace ar_fast
