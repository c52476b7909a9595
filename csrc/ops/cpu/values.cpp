#include "values.h"

#include <vector>

namespace ar_fast {

void check_offset_values(const char* op, const char* name, const int64_t* offsets, int64_t variables, int64_t rows,
                         int64_t fewest) {
  if (!offsets) return;
  TORCH_CHECK(offsets[0] == 0 && offsets[variables] == rows, op, ": ", name, " must run from 0 to ", rows, ", got ",
              offsets[0], " to ", offsets[variables]);
  for (int64_t i = 0; i < variables; ++i) {
    TORCH_CHECK(offsets[i] + fewest <= offsets[i + 1], op, ": ", name,
                fewest > 0 ? " must ascend, got " : " must not descend, got ", offsets[i], " before ", offsets[i + 1],
                " at ", i);
  }
}

void check_order_values(const char* op, const int64_t* order, int64_t variables) {
  if (!order) return;
  std::vector<bool> seen(variables, false);
  for (int64_t p = 0; p < variables; ++p) {
    TORCH_CHECK(order[p] >= 0 && order[p] < variables && !seen[order[p]], op,
                ": order must be a permutation of 0 ... D-1 = ", variables - 1, ", got ", order[p], " at position ", p);
    seen[order[p]] = true;
  }
}

namespace {

template <typename T>
void check_categories(const char* op, const Head& head, int64_t variables, int64_t rows, const int64_t* offsets,
                      int64_t batch, const T* x) {
  for (int64_t i = 0; i < variables; ++i) {
    if (head.of(i).kind != HeadKind::categorical) continue;
    const int64_t count = offsets ? offsets[i + 1] - offsets[i] : rows / variables;
    for (int64_t row = 0; row < batch; ++row) {
      const T value = x[row * variables + i];
      TORCH_CHECK(value >= T(0) && value < static_cast<T>(count) && value == static_cast<T>(static_cast<int64_t>(value)),
                  op, ": x must lie in [0, ", count, ") for variable ", i, ", got ", value, " in row ", row);
    }
  }
}

void check_kinds(const char* op, const Head& head, int64_t variables, int64_t rows, const int64_t* offsets) {
  for (int64_t i = 0; i < variables; ++i) {
    const auto [kind, levels, none] = head.of(i);
    TORCH_CHECK(kind >= HeadKind::bernoulli && kind <= HeadKind::logistic_mixture, op,
                ": head_kinds must be 0 ... 3, got ", static_cast<int64_t>(kind), " for variable ", i);
    const bool discretised = kind == HeadKind::logistic_mixture;
    TORCH_CHECK(discretised ? levels >= 2 : levels == 0, op, ": head_kinds must have ",
                discretised ? "at least 2 levels" : "levels of 0 but for logistic_mixture", ", got ", levels,
                " for variable ", i);
    const int64_t count = offsets ? offsets[i + 1] - offsets[i] : rows / variables;
    // A variable without parameters is known, and has no head.
    TORCH_CHECK(
        count == 0 || kind == HeadKind::categorical || (kind == HeadKind::bernoulli ? count == 1 : count % 3 == 0), op,
        ": a variable must have ", kind == HeadKind::bernoulli ? "1 parameter" : "3 K parameters", " for a ",
        kind == HeadKind::bernoulli ? "bernoulli" : "mixture", " head, got ", count, " for variable ", i);
  }
}

}  // namespace

void check_head_values(const char* op, const Head& head, int64_t variables, int64_t rows, const int64_t* offsets,
                       int64_t batch, const float* x, const double* x_double) {
  if (head.kind == HeadKind::per_variable) check_kinds(op, head, variables, rows, offsets);
  if (head.kind == HeadKind::categorical || head.kind == HeadKind::per_variable) {
    if (x) check_categories(op, head, variables, rows, offsets, batch, x);
    if (x_double) check_categories(op, head, variables, rows, offsets, batch, x_double);
  } else if (head.kind != HeadKind::bernoulli && offsets) {
    for (int64_t i = 0; i < variables; ++i) {
      const int64_t count = offsets[i + 1] - offsets[i];
      TORCH_CHECK(count % 3 == 0, op, ": a variable must have 3 K parameters for a mixture head, got ", count,
                  " for variable ", i);
    }
  }
}

void check_input_rows(const char* op, const Head& head, int64_t variables, int64_t rows, const int64_t* offsets,
                      const int64_t* in_offsets, int64_t in_rows) {
  check_offset_values(op, "in_offsets", in_offsets, variables, in_rows);
  for (int64_t i = 0; in_offsets && i < variables; ++i) {
    const int64_t own = in_offsets[i + 1] - in_offsets[i];
    const bool category = head.of(i).kind == HeadKind::categorical;
    const int64_t expected = !category ? 1 : offsets ? offsets[i + 1] - offsets[i] : rows / variables;
    TORCH_CHECK(own == expected, op, ": in_offsets must have ", expected, " rows at ", i, ", ",
                category ? "one per category" : "for a value", ", got ", own);
  }
}

}  // namespace ar_fast
