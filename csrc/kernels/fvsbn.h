// FVSBN: the contract of its sampling kernel on CUDA. One linear model per variable:
//
//   parameters of the variable at position p = bias + sum over positions j < p of the input at j times its weights
//
// Everything is stored by place, and place q is position D - 1 - q: the last variable comes first. So the input at
// place q reaches the parameters of places 0 ... q - 1, which are the first ones of its weight row: the mask is a
// staircase in place, and what a drawn value is pushed into is contiguous and begins at the row's first element.
//
// A real value scales the one weight row of its variable, a category gathers its row; with a per_variable head it is
// the number of a variable's rows that tells. Each parameter adds up its inputs in the order of positions with one
// fused multiply-add each, zeros left out (exact): the sum does not depend on batch, threads, tiles, or where a call
// was cut.
//
// Source: Frey, Hinton, Dayan, "Does the wake-sleep algorithm produce good density estimators?", NeurIPS 1995.
#pragma once

#include "draws.h"
#include "types.h"

namespace ar_fast {

struct FvsbnSample {
  Draws draws;
  ScalarType storage;              // of weight; compute type as in nade.h
  int64_t out_rows;                // R_out, parameters of all variables
  const void* weight;              // [R_in, R_out] storage. Masked ones are not read
  const int64_t* offsets;          // [D + 1] first parameter of each place; null = R_out / D each
  const int64_t* in_offsets;  // [D + 1] first weight row of each place, of per_variable; null elsewhere: as offsets
                              // for categorical, one row each otherwise
  void* state;                     // [B, R_out] compute: the sums so far; bias at position 0. Updated. Those of a drawn
                                   // variable are final, and stay
};

}  // namespace ar_fast
