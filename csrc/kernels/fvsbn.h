// FVSBN: the contract of its sampling kernel on CUDA. Every variable has a linear model:
//
//   parameters of the variable at position p = bias + sum over positions j < p of the input at j times its weights
//
// Everything is stored by place, where place q is position D - 1 - q: the last variable comes first. The input at place
// q affects the parameters of places 0 ... q - 1, which come first in its weight row. So the mask is a staircase, and
// the parameters that a drawn value is added to are contiguous and start at the row's first element.
//
// A real value scales the one weight row of its variable, a category selects its row; with a per_variable head, a
// variable with several rows is a category. Each parameter adds its inputs in the order of positions with one fused
// multiply-add each and skips zeros (exact): the sum does not depend on batch, threads, tiles, or how calls are cut.
//
// Source: Frey, Hinton, Dayan, "Does the wake-sleep algorithm produce good density estimators?", NeurIPS 1995.
#pragma once

#include "draws.h"
#include "types.h"

namespace ar_fast {

struct FvsbnSample {
  Draws draws;
  ScalarType storage;              // of weight; the compute type follows from it as in nade.h
  int64_t out_rows;                // R_out, parameters of all variables
  const void* weight;              // [R_in, R_out] storage; masked weights are not read
  const int64_t* offsets;          // [D + 1] first parameter of each place; null = R_out / D each
  const int64_t* in_offsets;  // [D + 1] first weight row of each place, for a per_variable head; null for other heads:
                              // then categorical has rows as in offsets, other heads one row each
  void* state;                     // [B, R_out] compute: the sums so far; bias at position 0. Updated. Those of a drawn
                                   // variable are final and do not change
};

}  // namespace ar_fast
