// One-pass sampling of a masked multi-layer perceptron (MADE): its contract on CPU and CUDA.
//
// The network is a program of layers. Value 0 is the columns of the variables, value l + 1 the result of layer l:
//   value[l + 1][u] = f(bias_l[u] + sum over its terms of sum_{v < extents[u]} weight[u][v] value[source][v]
//                       + value[add][u])
// A layer has up to two terms, which read values 0 ... l; f is the activation or the identity; adding a value is
// optional. The last layer returns the parameters of the head. In a plain stack every layer has one term, which reads
// the value before it. A residual block is a layer that only activates, one that activates after a term, and one that
// adds. Direct connections are a second term of the last layer, which reads the columns.
//
// Everything is in order of position. The variable at position p owns the columns [in_offsets[p], in_offsets[p+1]):
// one column holds its value; of several columns, the one of its category is 1 and the others are 0. It owns the units
// [out_offsets[p], out_offsets[p+1]) of the last layer: the parameters of the head. The units of every other layer are
// sorted by degree; extents never decrease. The units [unit_ends[l][p-1], unit_ends[l][p]) of layer l can be computed
// when the first p variables are known, so each unit is computed exactly once.
// Source: Germain, Gregor, Murray, Larochelle, "MADE", ICML 2015; the schedule is ours.
//
// The weight may also be stored by input in a network without hidden layers whose last layer has one term that reads
// all columns before a unit's position: [R_in, R_out], from the last position to the first. A variable's rows are
// adjacent and ascend, and so are its columns: column c of a variable is row R_in - in_offsets[p + 1] + c, and its
// parameter j is column R_out - out_offsets[p + 1] + j of every row. So what a drawn value adds to the parameters of
// all later positions is the beginning of a row. With a categorical head each category has its own column, even if a
// variable has only one category. extents are null. Only the CPU draws from such a weight.
//
// The order of a sum over inputs depends only on the program, the extents and the positions (on the CPU by blocks of
// positions, ascending in each; on CUDA by lanes of a warp), so a row does not depend on batch, tile, threads and cuts.
// With a weight by input, a sum skips the inputs that are zero. If all weights are finite, this changes no bit except
// the sign of a zero. A weight that is not finite has no effect on rows whose input is zero; a weight by unit turns
// these rows into NaN.
#pragma once

#include "draws.h"
#include "transforms.h"
#include "types.h"

namespace ar_fast {

constexpr int masked_mlp_max_layers = 32;
constexpr int masked_mlp_max_terms = 2;

struct MaskedMlpTerm {
  const void* weight;              // [units, units of the value read] storage, contiguous; by_input: as above
  const int32_t* extents;          // [units] how many of them a unit sees
  int32_t source;                  // the value read
};

struct MaskedMlpLayer {
  int64_t units;                   // R_out for the last layer
  int64_t offset;                  // where its units begin in a row of state; unused for the last layer
  const void* bias;                // [units] or [B, units] compute, or null
  int64_t bias_stride;             // 0 or units
  const int32_t* unit_ends;        // [D] how many are computable once p variables are known; null for the last layer
  int32_t terms;                   // 0 ... 2
  int32_t add;                     // the value added, which has as many units; -1 is none
  bool activated;
  MaskedMlpTerm term[masked_mlp_max_terms];
};

struct MaskedMlpSample {
  Draws draws;
  Transform transform;             // its kind is none unless the head is transform
  ScalarType storage;              // of the weights; the compute type follows from it as in nade.h
  Activation activation;
  bool by_input;                   // how the weight is stored
  int64_t in_rows;                 // R_in
  const int64_t* in_offsets;       // [D + 1] by position; null = R_in / D columns each
  const int64_t* out_offsets;      // [D + 1] by position; null = R_out / D rows each
  int64_t features;                // R_in + units of all layers but the last
  int64_t hidden_layers;           // L; layers[L] is the last layer
  MaskedMlpLayer layers[masked_mlp_max_layers + 1];
  void* state;                     // [B, features] compute: the columns, then the values of all layers except the last
};

// CUDA kernels take this struct as an argument.
static_assert(sizeof(MaskedMlpSample) <= 4096 - 64, "a kernel's arguments have 4 KiB");

// Columns, parameters or units that belong to the variable at a position, or are computed there.
struct MaskedMlpRange {
  int64_t begin, end;
};

AR_FAST_HOST_DEVICE inline MaskedMlpRange masked_mlp_columns(const MaskedMlpSample& sample, int64_t position) {
  if (sample.in_offsets != nullptr) return {sample.in_offsets[position], sample.in_offsets[position + 1]};
  const int64_t each = sample.in_rows / sample.draws.variables;
  return {position * each, (position + 1) * each};
}

AR_FAST_HOST_DEVICE inline MaskedMlpRange masked_mlp_parameters(const MaskedMlpSample& sample, int64_t position) {
  if (sample.out_offsets != nullptr) return {sample.out_offsets[position], sample.out_offsets[position + 1]};
  const int64_t each = sample.layers[sample.hidden_layers].units / sample.draws.variables;
  return {position * each, (position + 1) * each};
}

AR_FAST_HOST_DEVICE inline MaskedMlpRange masked_mlp_units(const MaskedMlpSample& sample, int64_t layer,
                                                           int64_t position) {
  if (layer == sample.hidden_layers) return masked_mlp_parameters(sample, position);
  const int32_t* ends = sample.layers[layer].unit_ends;
  return {position == 0 ? 0 : ends[position - 1], ends[position]};
}

// For a value: its width, where it begins in a row of state, and how much of it is known before a position.
AR_FAST_HOST_DEVICE inline int64_t masked_mlp_width(const MaskedMlpSample& sample, int64_t value) {
  return value == 0 ? sample.in_rows : sample.layers[value - 1].units;
}

AR_FAST_HOST_DEVICE inline int64_t masked_mlp_offset(const MaskedMlpSample& sample, int64_t value) {
  return value == 0 ? 0 : sample.layers[value - 1].offset;
}

AR_FAST_HOST_DEVICE inline int64_t masked_mlp_known(const MaskedMlpSample& sample, int64_t value, int64_t position) {
  return value == 0 ? masked_mlp_columns(sample, position).begin : masked_mlp_units(sample, value - 1, position).begin;
}

}  // namespace ar_fast
