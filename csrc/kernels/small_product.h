// Products of small matrices on the CPU, where a call of a BLAS costs more than its arithmetic: the contract.
#pragma once

#include "types.h"

namespace ar_fast {

// c = f(a p + bias)
struct SmallProduct {
  ScalarType storage;           // of every matrix: float32 or float64
  int64_t sums, columns;        // K, N
  const void* a;                // element (m, k) at m a_row + k a_sum
  int64_t a_row, a_sum;
  const void* p;                // [K, small_product_width(N)] as small_product_pack makes it
  const void* bias;             // [N], or [M, N] with rows bias_row apart, or null
  int64_t bias_row;             // 0 or N
  Activation activation;
  void* c;                      // [M, N]
};

// What a product multiplies by: value, [K, N], or [N, K] if it is transposed; times mask at the same place unless it is
// null.
struct SmallProductSource {
  ScalarType storage;
  int64_t sums, columns;  // K, N
  bool transposed;
  const void* value;
  const void* mask;
};

// The gradient before an activation, result = grad f'(z), from its value f(z), and sums of the result over rows. f is
// none, whose result is grad itself and is not written, or one whose derivative follows from its value.
struct SmallActivationBackward {
  ScalarType storage;
  int64_t rows, columns;
  Activation activation;
  const void* grad;    // [rows, columns]
  const void* value;   // [rows, columns], or null for none
  void* result;        // [rows, columns], or null for none
  void* sums;          // [columns]
};

}  // namespace ar_fast
