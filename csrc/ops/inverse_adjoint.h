// The backward sweep of an autoregressive transform's inverse: from the adjoint of each variable the parameters of which
// it was computed give adjoints to the units that made them, and these to the variables before it, each unit once.
//
// A network computes the K parameters of each of D variables from the variables before it, level by level: at level l
// the variables of the levels before l are known. program: 4 numbers for each step, which makes value s + 1 of values
// before it: the value that it reads; a second value that it adds, or -1; 1 if it multiplies by a matrix, else 0; 1 if
// it multiplies unit by unit, by a slope (that of an activation at its input, a gate, a scale), else 0. Value 0 is the
// variables by level, the last value their parameters (D, K).
// Shapes: grad (B, D), the adjoints that each x has from outside; factors (B, D K), the derivative of each x by its own
// parameters; weights: for each step with a matrix, (units, units of the value read), with zeros where it must not
// read; slopes: for each step with one, (B, units). ends: for each value L + 1 numbers: at level l the units
// ends[l] ... ends[l+1]-1 are computed; of value 0 those are the variables of level l - 1.
// Types: all tensors have the same floating dtype.
#pragma once

#include <vector>

#include "../kernels/inverse_adjoint.h"
#include "arguments.h"
#include "common.h"

namespace ar_fast {

// -> the adjoint of each x (B, D)
struct InverseAdjointArguments {
  static constexpr const char* op = "inverse_adjoint";
  using Result = at::Tensor;
  at::Tensor grad, factors;
  at::TensorList weights, slopes;
  at::IntArrayRef program, ends;
};

// --- shared by the implementations

// What the arguments say; it points into them.
struct InverseAdjointSweep {
  struct Step {
    int64_t source, other;
    const at::Tensor *weight, *slope;  // null for none
  };
  std::vector<Step> steps;
  std::vector<const int64_t*> ends;  // of each value, [L + 1]
  int64_t levels, batch, variables, parameters;

  int64_t units(size_t value) const { return value == 0 ? variables : ends[value][levels]; }
};

InverseAdjointSweep check_inverse_adjoint(const InverseAdjointArguments& a);

// By torch's products, on any device and in any dtype.
at::Tensor inverse_adjoint_by_torch(const InverseAdjointArguments& a, const InverseAdjointSweep& sweep);

}  // namespace ar_fast
