// NADE: the contract of its kernels on CPU and CUDA.
//
//   a_0 = in_bias,   h_p = f(s_i a_p),   parameters of variable i = out_bias[rows of i] + out_weight[rows of i] h_p,
//   a_{p+1} = a_p + x_i in_weight[row of i],        i = order[p], p = 0 ... D-1, s = activation_scale (1 if null).
//
// Source: Larochelle and Murray, "The neural autoregressive distribution estimator", AISTATS 2011, algorithm 1;
// activation_scale: Uria, Murray, Larochelle, "RNADE", NeurIPS 2013, equation 6.
//
// Every pointer points to contiguous memory. `storage` is the type of in_weight, out_weight and their gradients; all
// other real numbers have the compute type: double for float64 storage, float otherwise.
#pragma once

#include "draws.h"
#include "head.h"
#include "types.h"

namespace ar_fast {

struct NadeModel {
  ScalarType storage;
  Activation activation;
  int64_t variables;               // D
  int64_t hidden;                  // H
  int64_t in_rows;                 // R_in
  int64_t out_rows;                // R_out
  const void* in_weight;           // [R_in, H] storage
  const void* in_bias;             // [H] or [B, H] compute
  int64_t in_bias_stride;          // 0 for [H], H for [B, H]
  const void* out_weight;          // [R_out, H] storage
  const void* out_bias;            // [R_out] compute
  const int64_t* order;            // [D], order[p] = variable at position p; null = identity
  const int64_t* in_offsets;       // [D + 1] first in_weight row of each variable; null = R_in / D rows each
  const int64_t* out_offsets;      // [D + 1] first out_weight row of each variable; null = R_out / D rows each
  const void* activation_scale;    // [D] compute; null = 1
};

// Inputs of B rows. Exactly one of x and categories is not null.
struct NadeInput {
  int64_t batch;                   // B
  const void* x;                   // [B, D] compute: x scales the one in_weight row of its variable, or if the variable
                                   // has several, is a category that selects one
  const int64_t* categories;       // [B, D] in [0, rows of the variable): selects a row; others add NaN
  bool odds;                       // all factors are 0 or 1, and keeping exp(-a) is worth it (cpu/nade_form.h)
};

struct NadeForward {
  void* parameters;                // [B, R_out] compute, written; null if not wanted
  // The head's log-likelihood of the input, read from x or from categories:
  Head head;
  void* log_prob_per_variable;     // [B, D] compute, written; null if not wanted
  void* log_prob;                  // [B] compute, written, summed in double; null if not wanted
};

// The backward pass from the gradient of the parameters. Outputs are overwritten; null if not wanted.
struct NadeBackward {
  const void* grad_parameters;     // [B, R_out] compute
  void* grad_in_weight;            // [R_in, H] storage
  void* grad_out_weight;           // [R_out, H] storage
  void* grad_in_bias;              // [H] or [B, H] compute, as in_bias_stride says
  void* grad_x;                    // [B, D] compute
  void* grad_activation_scale;     // [B, D] compute: the share of each row; the caller sums over B
};

// Draws positions draws.start ... draws.stop - 1. order is that of the model; head.kinds is indexed by variable.
struct NadeSample {
  Draws draws;
  bool gathers;                    // every value selects a row of in_weight; else a value selects a row if its variable
                                   // has several, and scales the row if the variable has one
  void* state;                     // [B, H] compute: the pre-activations a_start on entry, a_stop on return
};

}  // namespace ar_fast
