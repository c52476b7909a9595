// One-pass sampling of a masked multi-layer perceptron (MADE): its contract, CPU and CUDA.
//
// The network is a program of layers. Value 0 is the columns of the variables, value l + 1 what layer l gives:
//   value[l + 1][u] = f(bias_l[u] + sum over its terms of sum_{v < extents[u]} weight[u][v] value[source][v]
//                       + value[add][u])
// with up to two terms, which read values 0 ... l, f the activation or nothing, and the value added or none. The last
// layer gives the parameters of the head. A plain stack is one term in every layer, each of the value before it; a
// residual block is a layer that activates, one that does so after a term, and one that adds; direct connections are a
// second term of the last layer, of the columns.
//
// Everything is in order of position. The variable at position p owns the columns [in_offsets[p], in_offsets[p+1]):
// one column takes its value, of several the one of its category takes 1 and the others 0. It owns the units
// [out_offsets[p], out_offsets[p+1]) of the last layer: the parameters of the head. The units of every other layer are
// sorted by degree; extents never decrease. The units [unit_ends[l][p-1], unit_ends[l][p]) of layer l become computable
// when the first p variables are known, so each unit is computed exactly once.
// Source: Germain, Gregor, Murray, Larochelle, "MADE", ICML 2015; the schedule is ours.
//
// A network without hidden layers, whose last layer has one term, all the columns before a unit's position, may have
// its weight by input instead: [R_in, R_out], from the last position to the first. A variable's rows, and its columns,
// are together and ascend: the column c of a variable is row R_in - in_offsets[p + 1] + c, and its parameter j is
// column R_out - out_offsets[p + 1] + j of every row. So what a drawn value adds to the parameters of all the positions
// after its own is the beginning of a row. With a categorical head a category has a column of its own, also the only
// one of its variable. extents are null. Only the CPU draws from such a weight.
//
// The order of a sum over inputs is fixed by the program, the extents and the positions alone (on the CPU by blocks of
// positions, ascending in each; by lanes of a warp on CUDA), so a row does not depend on batch, tile, threads and cuts.
// With a weight by input a sum leaves out the inputs that are zero. As long as weights are finite that changes no bit
// but the sign of a zero; one that is not finite has no effect on the rows whose input is zero, where by unit it makes
// NaN of them.
#pragma once

#include "draws.h"
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
  int64_t offset;                  // where its units begin among the features of state; unused for the last layer
  const void* bias;                // [units] or [B, units] compute, or null
  int64_t bias_stride;             // 0 or units
  const int32_t* unit_ends;        // [D] computable once the first p variables are known; null for the last layer
  int32_t terms;                   // 0 ... 2
  int32_t add;                     // the value added, of as many units; -1 is none
  bool activated;
  MaskedMlpTerm term[masked_mlp_max_terms];
};

struct MaskedMlpSample {
  Draws draws;
  ScalarType storage;              // of the weights; compute type as in nade.h
  Activation activation;
  bool by_input;                   // how the weight is stored
  int64_t in_rows;                 // R_in
  const int64_t* in_offsets;       // [D + 1] by position; null = R_in / D columns each
  const int64_t* out_offsets;      // [D + 1] by position; null = R_out / D rows each
  int64_t features;                // R_in + units of all layers but the last
  int64_t hidden_layers;           // L; layers[L] is the last layer
  MaskedMlpLayer layers[masked_mlp_max_layers + 1];
  void* state;                     // [B, features] compute: the columns, then what each layer but the last gives
};

// Kernels on CUDA take it as an argument.
static_assert(sizeof(MaskedMlpSample) <= 4096 - 64, "a kernel's arguments have 4 KiB");

// Columns, parameters or units: of the variable at a position, or computed at it.
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

// Of a value: how much of it there is, where it begins among the features, how much is there before a position.
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
