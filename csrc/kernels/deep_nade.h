// Orderless NADE of several hidden layers: the contract of its sampling kernels, CPU and CUDA.
//
// At a position p, with i = order[p], and the pre-activations a_p of the first layer as state,
//
//   h_1 = f(a_p),   h_l = f(A_l h_{l-1} + c_l),   parameters of i = out_bias[rows of i] + out_weight[rows of i] h_L,
//   a_{p+1} = a_p + (mask_weight[i] + x_i in_weight[row of i])
//
// where x_i scales the one row of its variable or, a category, gathers one of several. A variable that is known draws
// nothing and adds nothing: the state has it from the start, wherever it is in the order.
//
// Every product is summed in an order that its length alone fixes, whatever the batch, the threads, and where a call is
// cut: a row's values and state are the same bits in any of them.
//
// Source: Uria, Murray, Larochelle, "A deep and tractable density estimator", ICML 2014.
//
// Every pointer is to contiguous memory. `storage` is the type of the weights; everything else that is real has the
// compute type: double for float64 storage, float otherwise.
#pragma once

#include "draws.h"
#include "types.h"

namespace ar_fast {

constexpr int64_t deep_nade_most_layers = 16;

// A hidden layer after the first.
struct DeepNadeLayer {
  const void* weight;              // A: [units, units of the layer before] storage
  const void* bias;                // c: [units] compute
  int64_t units;
};

struct DeepNadeSample {
  Draws draws;                     // head.kinds goes by variable
  ScalarType storage;
  Activation activation;
  bool gathers;                    // every value gathers a row of in_weight; else it does so where its variable has
                                   // several
  int64_t hidden;                  // H, of the first layer
  int64_t in_rows, out_rows;
  int64_t most_parameters;         // that a variable has
  int64_t layers;                  // after the first, at most deep_nade_most_layers
  DeepNadeLayer layer[deep_nade_most_layers];
  const void* in_weight;           // [R_in, H] storage
  const void* mask_weight;         // [D, H] storage
  const void* out_weight;          // [R_out, units of the last layer] storage
  const void* out_bias;            // [R_out] compute
  const int64_t* in_offsets;       // [D + 1] first in_weight row of each variable; null = R_in / D rows each
  const int64_t* out_offsets;      // [D + 1] first out_weight row of each variable; null = R_out / D rows each
  void* state;                     // [B, H] compute: a_start on entry, a_stop on return

  // Of hidden layer l, counted from 0.
  AR_FAST_HOST_DEVICE int64_t units(int64_t l) const { return l == 0 ? hidden : layer[l - 1].units; }
  AR_FAST_HOST_DEVICE int64_t first_in_row(int64_t variable) const {
    return in_offsets ? in_offsets[variable] : variable * (in_rows / draws.variables);
  }
  AR_FAST_HOST_DEVICE int64_t first_out_row(int64_t variable) const {
    return out_offsets ? out_offsets[variable] : variable * (out_rows / draws.variables);
  }
  AR_FAST_HOST_DEVICE bool gathers_row(int64_t variable) const {
    return gathers || first_in_row(variable + 1) - first_in_row(variable) > 1;
  }
};

}  // namespace ar_fast
