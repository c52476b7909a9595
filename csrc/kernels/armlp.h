// ARMLP: the contract of its sampling kernels on CPU and CUDA. Every variable has a separate network with one hidden
// layer; nothing is shared:
//
//   a_p = in_bias_p + sum over positions j < p of the input at j times its weights in network p,   h_p = f(a_p),
//   parameters of the variable at position p = out_bias_p + out_weight_p h_p
//
// Everything is stored by position. Networks are stored in blocks of armlp_block. For each input row that some network
// of a block sees, in_weight has one row of H weights for each network of the block: input row r of network p is row
//   block_starts[p / armlp_block] + r n + p % armlp_block,   n = the number of networks in the block,
// so that a block is one matrix (input rows, n H), in which only the corner where inputs meet networks of their own
// block is masked. A real value scales the one input row of its variable, a category selects its row; with a
// per_variable head, a variable with several rows is a category.
//
// Inputs that are zero are skipped (exact). A pre-activation is the sum of the other inputs in the order of positions,
// with separate sums for even and odd ones of them: it does not depend on batch, threads, or how calls are cut.
//
// Source: the untied form of NADE, Larochelle and Murray, "The neural autoregressive distribution estimator", AISTATS
// 2011, section 3; Bengio and Bengio, "Modeling high-dimensional discrete data with multi-layer neural networks",
// NeurIPS 1999.
#pragma once

#include "draws.h"
#include "types.h"

namespace ar_fast {

constexpr int64_t armlp_block = 8;

struct ArmlpSample {
  Draws draws;
  ScalarType storage;              // of the weights; the compute type follows from it as in nade.h
  Activation activation;
  int64_t hidden;                  // H
  int64_t out_rows;                // R_out, parameters of all variables
  const void* in_weight;           // [block_starts[last], H] storage
  const int64_t* block_starts;     // [ceil(D / armlp_block) + 1] first row of in_weight of each block
  const void* in_bias;             // [D, H] or [B, D, H] compute
  int64_t in_bias_stride;          // 0 or D H
  const void* out_weight;          // [R_out, H] storage
  const void* out_bias;            // [R_out] compute
  const int64_t* offsets;          // [D + 1] first parameter of each position; null = R_out / D each
  const int64_t* in_offsets;  // [D + 1] first input row of each position, for a per_variable head; null for others:
                              // then categorical has rows as in offsets, other heads one row each
  void* state;                     // [B, D] compute, by position: the values before start; those up to stop are written
};

}  // namespace ar_fast
