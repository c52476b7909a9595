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
void check_categories(const char* op, int64_t variables, int64_t rows, const int64_t* offsets, int64_t batch,
                      const T* x) {
  for (int64_t i = 0; i < variables; ++i) {
    const int64_t count = offsets ? offsets[i + 1] - offsets[i] : rows / variables;
    for (int64_t row = 0; row < batch; ++row) {
      const T value = x[row * variables + i];
      TORCH_CHECK(value >= T(0) && value < static_cast<T>(count) && value == static_cast<T>(static_cast<int64_t>(value)),
                  op, ": x must lie in [0, ", count, ") for variable ", i, ", got ", value, " in row ", row);
    }
  }
}

}  // namespace

void check_head_values(const char* op, const Head& head, int64_t variables, int64_t rows, const int64_t* offsets,
                       int64_t batch, const float* x, const double* x_double) {
  if (head.kind == HeadKind::categorical) {
    if (x) check_categories(op, variables, rows, offsets, batch, x);
    if (x_double) check_categories(op, variables, rows, offsets, batch, x_double);
  } else if (head.kind != HeadKind::bernoulli && offsets) {
    for (int64_t i = 0; i < variables; ++i) {
      const int64_t count = offsets[i + 1] - offsets[i];
      TORCH_CHECK(count % 3 == 0, op, ": a variable must have 3 K parameters for a mixture head, got ", count,
                  " for variable ", i);
    }
  }
}

}  // namespace ar_fast
