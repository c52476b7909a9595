#include "values.h"

#include <vector>

namespace ar_fast {

void check_offset_values(const char* op, const char* name, const int64_t* offsets, int64_t variables, int64_t rows,
                         const Entries& entries, int64_t fewest) {
  if (!offsets) return;
  TORCH_CHECK(offsets[0] == 0 && offsets[variables] == rows, op, ": ", name, " must run from 0 to ", rows, ", got ",
              offsets[0], " to ", offsets[variables]);
  for (int64_t k = entries.begin; k < entries.end; ++k) {
    const int64_t i = entries[k];
    TORCH_CHECK(offsets[i] + fewest <= offsets[i + 1], op, ": ", name,
                fewest > 0 ? " must ascend, got " : " must not descend, got ", offsets[i], " before ", offsets[i + 1],
                " at ", i);
    // Of all entries this follows from the rule above.
    TORCH_CHECK(offsets[i] >= 0 && offsets[i + 1] <= rows, op, ": ", name, " must lie in 0 ... ", rows, ", got ",
                offsets[i], " before ", offsets[i + 1], " at ", i);
  }
}

void check_order_values(const char* op, const int64_t* order, int64_t variables, int64_t start, int64_t stop) {
  if (!order) return;
  const bool whole = start == 0;
  std::vector<bool> seen(whole ? variables : 0, false);
  for (int64_t p = start; p < (whole ? variables : stop); ++p) {
    TORCH_CHECK(order[p] >= 0 && order[p] < variables && !(whole && seen[order[p]]), op,
                ": order must be a permutation of 0 ... D-1 = ", variables - 1, ", got ", order[p], " at position ", p);
    if (whole) seen[order[p]] = true;
  }
}

namespace {

void check_kinds(const char* op, const Head& head, int64_t variables, int64_t rows, const int64_t* offsets,
                 const Entries& entries) {
  for (int64_t k = entries.begin; k < entries.end; ++k) {
    const int64_t i = entries[k];
    const auto [kind, levels, none] = head.of(i);
    TORCH_CHECK(kind >= HeadKind::bernoulli && kind <= HeadKind::logistic_mixture, op,
                ": head_kinds must be 0 ... 3, got ", static_cast<int64_t>(kind), " for variable ", i);
    const bool discretised = kind == HeadKind::logistic_mixture;
    TORCH_CHECK(discretised ? levels >= 2 : levels == 0, op, ": head_kinds must have ",
                discretised ? "at least 2 levels" : "levels of 0 except for logistic_mixture", ", got ", levels,
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
                       const Entries& entries) {
  if (head.kind == HeadKind::per_variable) {
    check_kinds(op, head, variables, rows, offsets, entries);
  } else if (head.kind != HeadKind::bernoulli && head.kind != HeadKind::categorical && offsets) {
    for (int64_t k = entries.begin; k < entries.end; ++k) {
      const int64_t i = entries[k], count = offsets[i + 1] - offsets[i];
      TORCH_CHECK(count % 3 == 0, op, ": a variable must have 3 K parameters for a mixture head, got ", count,
                  " for variable ", i);
    }
  }
}

void check_input_rows(const char* op, const Head& head, int64_t variables, int64_t rows, const int64_t* offsets,
                      const int64_t* in_offsets, int64_t in_rows, const Entries& entries) {
  check_offset_values(op, "in_offsets", in_offsets, variables, in_rows, entries);
  for (int64_t k = entries.begin; in_offsets && k < entries.end; ++k) {
    const int64_t i = entries[k];
    const int64_t own = in_offsets[i + 1] - in_offsets[i];
    const bool category = head.of(i).kind == HeadKind::categorical;
    const int64_t expected = !category ? 1 : offsets ? offsets[i + 1] - offsets[i] : rows / variables;
    TORCH_CHECK(own == expected, op, ": in_offsets must have ", expected, " rows at ", i, ", ",
                category ? "one per category" : "for a value", ", got ", own);
  }
}

}  // namespace ar_fast
