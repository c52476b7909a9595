#include "inverse_adjoint.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string>
#include <vector>

namespace ar_fast {
namespace {

void check_tensor(const char* list, size_t index, const at::Tensor& tensor, const InverseAdjointArguments& a,
                  int64_t rows, int64_t columns) {
  const std::string name = std::string(list) + "[" + std::to_string(index) + "]";
  check_same_dtype(a.op, name.c_str(), tensor, "grad", a.grad);
  check_same_device(a.op, name.c_str(), tensor, "grad", a.grad);
  TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns, a.op, ": ", name,
              " must have shape (", rows, ", ", columns, "), got ", tensor.sizes());
}

}  // namespace

InverseAdjointSweep check_inverse_adjoint(const InverseAdjointArguments& a) {
  const char* op = a.op;
  check_dim(op, "grad", a.grad, 2, "(B, D)");
  check_floating(op, "grad", a.grad);
  InverseAdjointSweep sweep{};
  sweep.batch = a.grad.size(0);
  sweep.variables = a.grad.size(1);
  TORCH_CHECK(sweep.variables > 0, op, ": grad must have at least one variable, got shape ", a.grad.sizes());
  check_dim(op, "factors", a.factors, 2, "(B, D K)");
  check_size(op, "factors", a.factors, 0, a.grad.sym_size(0), "rows, as many as grad,");
  check_same_dtype(op, "factors", a.factors, "grad", a.grad);
  check_same_device(op, "factors", a.factors, "grad", a.grad);
  TORCH_CHECK(a.factors.size(1) > 0 && a.factors.size(1) % sweep.variables == 0, op,
              ": factors must have a multiple of D = ", sweep.variables, " columns, got ", a.factors.size(1));
  sweep.parameters = a.factors.size(1) / sweep.variables;

  TORCH_CHECK(!a.program.empty() && a.program.size() % 4 == 0, op,
              ": program must hold 4 numbers for each step and at least one step, got ", a.program.size(), " numbers");
  const size_t steps = a.program.size() / 4, values = steps + 1;
  TORCH_CHECK(a.ends.size() >= 2 * values && a.ends.size() % values == 0, op,
              ": ends must hold L + 1 numbers for each of ", values, " values, L at least 1, got ", a.ends.size());
  sweep.levels = static_cast<int64_t>(a.ends.size() / values) - 1;
  for (size_t v = 0; v < values; ++v) {
    const int64_t* const ends = a.ends.data() + v * static_cast<size_t>(sweep.levels + 1);
    bool rising = ends[0] == 0;
    for (int64_t l = 0; l < sweep.levels; ++l) rising = rising && ends[l] <= ends[l + 1];
    TORCH_CHECK(rising, op, ": ends must begin at 0 and rise for each value, got others for value ", v);
    sweep.ends.push_back(ends);
  }
  // At the first level no variable is known.
  TORCH_CHECK(sweep.ends[0][1] == 0 && sweep.ends[0][sweep.levels] <= sweep.variables, op,
              ": ends must be 0, 0, ... and at most D = ", sweep.variables, " for value 0, got others");
  TORCH_CHECK(sweep.units(steps) == a.factors.size(1), op, ": ends must end at D K = ", a.factors.size(1),
              " for the last value, got ", sweep.units(steps));
  size_t weights = 0, slopes = 0;
  for (size_t s = 0; s < steps; ++s) {
    const int64_t source = a.program[4 * s], other = a.program[4 * s + 1];
    const bool weighted = a.program[4 * s + 2] != 0, sloped = a.program[4 * s + 3] != 0;
    const int64_t made = static_cast<int64_t>(s);
    TORCH_CHECK(source >= 0 && source <= made && other >= -1 && other <= made && !(weighted && (sloped || other >= 0)),
                op, ": step ", s, " of program must read values before its own, with a matrix or a slope, got ",
                a.program.slice(4 * s, 4));
    InverseAdjointSweep::Step step{source, other, nullptr, nullptr};
    const int64_t units = sweep.units(s + 1);
    if (weighted) {
      TORCH_CHECK(weights < a.weights.size(), op, ": weights must hold one tensor for each step with a matrix, got ",
                  a.weights.size());
      step.weight = &a.weights[weights];
      check_tensor("weights", weights++, *step.weight, a, units, sweep.units(static_cast<size_t>(source)));
    } else {
      for (const int64_t value : {source, other}) {
        TORCH_CHECK(value < 0 || sweep.units(static_cast<size_t>(value)) == units, op, ": step ", s,
                    " of program must read as many units as it makes, ", units, ", got ",
                    sweep.units(static_cast<size_t>(value)));
        const auto read = value < 0 ? sweep.ends[s + 1] : sweep.ends[static_cast<size_t>(value)];
        TORCH_CHECK(std::equal(read, read + sweep.levels + 1, sweep.ends[s + 1]), op, ": step ", s,
                    " of program must make its units at the levels of those it reads, got others");
      }
    }
    if (sloped) {
      TORCH_CHECK(slopes < a.slopes.size(), op, ": slopes must hold one tensor for each step with a slope, got ",
                  a.slopes.size());
      step.slope = &a.slopes[slopes];
      check_tensor("slopes", slopes++, *step.slope, a, sweep.batch, units);
    }
    sweep.steps.push_back(step);
  }
  TORCH_CHECK(weights == a.weights.size() && slopes == a.slopes.size(), op, ": program must use all tensors, ", weights,
              " weights and ", slopes, " slopes, got ", a.weights.size(), " and ", a.slopes.size());
  return sweep;
}

at::Tensor inverse_adjoint_by_torch(const InverseAdjointArguments& a, const InverseAdjointSweep& sweep) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> adjoints;
  adjoints.push_back(a.grad.clone(at::MemoryFormat::Contiguous));
  for (size_t s = 0; s < sweep.steps.size(); ++s) {
    adjoints.push_back(at::zeros({sweep.batch, sweep.units(s + 1)}, a.grad.options()));
  }
  const std::vector<int64_t> by_variable{sweep.batch, sweep.variables, sweep.parameters};
  at::Tensor of_parameters = adjoints.back().view(by_variable);
  const at::Tensor factors = a.factors.contiguous().view(by_variable);
  for (int64_t level = sweep.levels - 1; level >= 0; --level) {
    // The adjoints of this level's variables are complete: all that see them belong to later levels.
    const int64_t* const ends = sweep.ends[0];
    const int64_t start = ends[level + 1];
    const int64_t count = (level + 1 < sweep.levels ? ends[level + 2] : sweep.variables) - start;
    at::Tensor made = of_parameters.narrow(1, start, count);
    at::mul_out(made, adjoints[0].narrow(1, start, count).unsqueeze(2), factors.narrow(1, start, count));
    for (size_t s = sweep.steps.size(); s-- > 0;) {
      const InverseAdjointSweep::Step& step = sweep.steps[s];
      const int64_t first = sweep.ends[s + 1][level], units = sweep.ends[s + 1][level + 1] - first;
      const auto source = static_cast<size_t>(step.source);
      if (step.weight != nullptr) {
        // The units that this level computes are seen by units of this level and of later ones.
        const int64_t left = sweep.ends[source][level], width = sweep.ends[source][level + 1] - left;
        const int64_t above = sweep.units(s + 1) - first;
        if (width == 0 || above == 0) continue;
        adjoints[source].narrow(1, left, width).addmm_(adjoints[s + 1].narrow(1, first, above),
                                                       step.weight->narrow(0, first, above).narrow(1, left, width));
        continue;
      }
      if (units == 0) continue;
      const at::Tensor piece = adjoints[s + 1].narrow(1, first, units);
      at::Tensor below = adjoints[source].narrow(1, first, units);
      if (step.slope != nullptr) {
        below.addcmul_(piece, step.slope->narrow(1, first, units));
      } else {
        below.add_(piece);
      }
      if (step.other >= 0) adjoints[static_cast<size_t>(step.other)].narrow(1, first, units).add_(piece);
    }
  }
  return adjoints[0];
}

namespace {

at::Tensor inverse_adjoint(const InverseAdjointArguments& a) {
  return inverse_adjoint_by_torch(a, check_inverse_adjoint(a));
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CompositeExplicitAutograd, m) { implement<inverse_adjoint>(m); }

}  // namespace ar_fast
