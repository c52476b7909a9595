// ARMLP: the contract of its sampling kernels, CPU and CUDA. A network with one hidden layer per variable, nothing
// shared:
//
//   a_p = in_bias_p + sum over positions j < p of the input at j times its weights in network p,   h_p = f(a_p),
//   parameters of the variable at position p = out_bias_p + out_weight_p h_p
//
// Everything is by position. Networks go in blocks of armlp_block; a block's part of in_weight has, for each input row
// that some network of the block sees, a row of H weights for each of its networks: input row r of network p lies at
//   block_starts[p / armlp_block] + r n + p % armlp_block,   n = the networks of the block,
// so that a block is one matrix (input rows, n H), of which only the corner where inputs meet networks of their own
// block is masked. A real value scales the one input row of its variable, a category gathers its row; with a
// per_variable head it is the number of a variable's rows that tells.
//
// Inputs that are zero are left out (exact). A pre-activation adds up the others in the order of positions, even and
// odd ones of them apart: it does not depend on batch, threads, or where a call was cut.
//
// Source: the network that NADE ties, Larochelle and Murray, "The neural autoregressive distribution estimator",
// AISTATS 2011, section 3; Bengio and Bengio, "Modeling high-dimensional discrete data with multi-layer neural
// networks", NeurIPS 1999.
#pragma once

#include "draws.h"
#include "types.h"

namespace ar_fast {

constexpr int64_t armlp_block = 8;

struct ArmlpSample {
  Draws draws;
  ScalarType storage;              // of the weights; compute type as in nade.h
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
  const int64_t* in_offsets;  // [D + 1] first input row of each position, of per_variable; null elsewhere: as offsets
                              // for categorical, one row each otherwise
  void* state;                     // [B, D] compute, by position: the values before start; those up to stop are written
};

}  // namespace ar_fast
