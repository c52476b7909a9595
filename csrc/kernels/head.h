// Heads: what the parameters of a variable mean. The contract of their kernels, CPU and CUDA.
//
// A variable owns the parameters [offsets[i], offsets[i+1]) of its row. With m = minimum_log_scale:
//   bernoulli          one logit l: log p = x l - log(1 + e^l), x in [0, 1]
//   categorical        K logits: log p = l_x - log sum_k e^l_k, x in 0 ... K-1
//   gaussian_mixture   K logits, K means, K log-scales s: log p = log sum_k softmax(l)_k N(x; mean_k, e^max(s_k, m)^2)
//   logistic_mixture   the same parameters; x lies on the grid of `levels` values from -1 to 1, and its probability is
//                      that of the bin around it, F((x + g - mean) / scale) - F((x - g - mean) / scale) with
//                      g = 1 / (levels - 1) and F the sigmoid; the bins at the ends are open
//   per_variable       each variable has one of the above: `kinds` says which
//   transform          no distribution: the sampler applies a transform to given numbers (transforms.h)
//
// Every difference of two sigmoids is computed as F(a) - F(b) = F(a) F(-b) (1 - e^(b-a)), so nothing cancels. Where
// log-scales are cut off at m their gradient is zero. Standardised distances are cut off at 10^15, so that every
// parameter a type can hold has a finite log p and finite gradients.
//
// Draws, with u_j the uniform number of slot j (see philox.h) and T the temperature:
//   bernoulli          1 iff u_0 < F(l / T)
//   categorical        the first k whose running sum of softmax(l / T) exceeds u_0
//   gaussian_mixture   component k as above, then mean_k + scale_k sqrt(T) sqrt(-2 log u_1) cos(2 pi u_2)
//   logistic_mixture   component k as above, then mean_k + scale_k T log(u_1 / (1 - u_1)), rounded to the grid
//
// Sources: Uria, Murray, Larochelle, "RNADE", NeurIPS 2013, equations 7 to 10 (mixtures of Gaussians); Salimans,
// Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017, equation 2 (mixtures of discretised logistics); Box and Muller 1958.
#pragma once

#include "types.h"

namespace ar_fast {

// Whether a value is one of 0 ... count - 1. What is none, be it negative, too large, a fraction or NaN, chooses no row
// of a table: it stands for NaN times the first row of its variable, and its log p and that of whatever depends on it
// are NaN, as are their gradients.
template <typename T>
AR_FAST_HOST_DEVICE inline bool is_category(T value, int64_t count) {
  return value >= T(0) && value < static_cast<T>(count) && value == static_cast<T>(static_cast<int64_t>(value));
}

enum class HeadKind : int32_t {
  bernoulli = 0,
  categorical = 1,
  gaussian_mixture = 2,
  logistic_mixture = 3,
  per_variable = 4,
  transform = 5,
};

struct Head {
  HeadKind kind = HeadKind::bernoulli;
  int64_t levels = 0;              // of logistic_mixture, at least 2
  const int64_t* kinds = nullptr;  // [D, 2] of per_variable, kind and levels by what offsets go by; null elsewhere

  // That of one variable.
  AR_FAST_HOST_DEVICE Head of(int64_t variable) const {
    if (kinds == nullptr) return *this;
    return {static_cast<HeadKind>(kinds[2 * variable]), kinds[2 * variable + 1], nullptr};
  }
};

constexpr double head_minimum_log_scale = -7.0;
constexpr double head_largest_distance = 1e15;

struct HeadRows {
  ScalarType storage;              // float32 or float64: of everything below
  Head head;
  int64_t batch;                   // B
  int64_t variables;               // D
  int64_t parameter_rows;          // R_out
  const int64_t* offsets;          // [D + 1]; null = R_out / D parameters each
  const void* parameters;          // [B, R_out]
  const void* x;                   // [B, D]
};

struct HeadLogProb {
  void* log_prob_per_variable;     // [B, D], written
};

struct HeadBackward {
  const void* grad;                // [B, D], or [B] where grad_stride is 0: one gradient for all variables of a row
  int64_t grad_stride;             // D or 0
  void* grad_parameters;           // [B, R_out], written
  void* grad_x;                    // [B, D], written: 0 for categorical
};

}  // namespace ar_fast
