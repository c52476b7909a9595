// The backward sweep of an autoregressive transform's inverse: the contract. ops/inverse_adjoint.h has the mathematics.
#pragma once

#include "types.h"

namespace ar_fast {

// How value s + 1 is made: weight times the value it reads, or slope times it plus a second value.
struct InverseAdjointStep {
  int64_t source;       // the value it reads; 0 is the variables
  int64_t other;        // the value it adds, or -1
  const void* weight;   // [units, units of source], rows weight_row apart, or null
  int64_t weight_row;
  const void* slope;    // [B, units], rows slope_row apart, 0 where all rows have the same; null for ones
  int64_t slope_row;
};

struct InverseAdjoint {
  ScalarType storage;  // of every tensor: float32 or float64
  int64_t variables, parameters, levels, count;  // D, K, L, how many steps
  const InverseAdjointStep* steps;               // [count]
  const int64_t* ends;     // [count + 1, L + 1]: level l computes units ends[l] ... ends[l + 1] - 1 of a value
  const int64_t* offsets;  // [count + 2]: where the units of each value begin among all, and how many there are in all
  const void* grad;        // [B, D]
  const void* factors;     // [B, D K]
  void* adjoint;           // [B, D]
};

}  // namespace ar_fast
