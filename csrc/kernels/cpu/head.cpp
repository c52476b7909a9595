// Heads over rows of parameters: log-likelihood and gradients.
#include "head_cpu.h"
#include "head_lanes.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

// Whether the variables of a row go together in vectors, and how many parameters each has then.
template <typename T>
bool goes_in_lanes(const HeadRows& rows) {
  return rows.offsets == nullptr && HeadLanes<T>::takes(rows.head, rows.parameter_rows / rows.variables);
}

// Calls body(variable, first parameter, parameters) for each variable.
template <typename Body>
void for_variables(const HeadRows& rows, const Body& body) {
  const int64_t each = rows.parameter_rows / rows.variables;
  for (int64_t i = 0; i < rows.variables; ++i) {
    const int64_t first = rows.offsets ? rows.offsets[i] : i * each;
    body(i, first, rows.offsets ? rows.offsets[i + 1] - first : each);
  }
}

template <typename T>
void log_prob_row(const HeadRows& rows, const HeadLogProb& output, int64_t row) {
  const T* parameters = static_cast<const T*>(rows.parameters) + row * rows.parameter_rows;
  const T* x = static_cast<const T*>(rows.x) + row * rows.variables;
  T* out = static_cast<T*>(output.log_prob_per_variable) + row * rows.variables;
  if (rows.head.kind == HeadKind::bernoulli) return bernoulli_log_prob(parameters, x, rows.variables, out);
  if (goes_in_lanes<T>(rows)) {
    const int64_t each = rows.parameter_rows / rows.variables;
    HeadLanes<T> lanes(rows.head, each);
    for_lanes<T>(rows.variables, [&](int64_t i, int64_t n) { lanes.log_prob(parameters + i * each, x + i, n, out + i); });
    return;
  }
  for_variables(rows, [&](int64_t i, int64_t first, int64_t count) {
    out[i] = head_log_prob_one(rows.head.of(i), parameters + first, count, x[i]);
  });
}

template <typename T>
void backward_row(const HeadRows& rows, const HeadBackward& output, int64_t row) {
  const T* parameters = static_cast<const T*>(rows.parameters) + row * rows.parameter_rows;
  const T* x = static_cast<const T*>(rows.x) + row * rows.variables;
  const T* grad = static_cast<const T*>(output.grad) + row * (output.grad_stride ? output.grad_stride : 1);
  T* grad_parameters = static_cast<T*>(output.grad_parameters) + row * rows.parameter_rows;
  T* grad_x = static_cast<T*>(output.grad_x) + row * rows.variables;
  if (rows.head.kind == HeadKind::bernoulli) {
    for_lanes<T>(rows.variables, [&](int64_t i, int64_t n) {
      const Vec<T> g = output.grad_stride ? load_lanes(grad + i, n) : Vec<T>(grad[0]);
      const Vec<T> l = load_lanes(parameters + i, n);
      store_lanes<T>(g * (load_lanes(x + i, n) - sigmoid<T>(l)), grad_parameters + i, n);
      store_lanes<T>(g * l, grad_x + i, n);
    });
    return;
  }
  if (goes_in_lanes<T>(rows)) {
    const int64_t each = rows.parameter_rows / rows.variables;
    HeadLanes<T> lanes(rows.head, each);
    for_lanes<T>(rows.variables, [&](int64_t i, int64_t n) {
      const Vec<T> g = output.grad_stride ? load_lanes(grad + i, n) : Vec<T>(grad[0]);
      lanes.backward(parameters + i * each, x + i, g, n, grad_parameters + i * each, grad_x + i);
    });
    return;
  }
  for_variables(rows, [&](int64_t i, int64_t first, int64_t count) {
    const T g = output.grad_stride ? grad[i] : grad[0];
    grad_x[i] = head_backward_one(rows.head.of(i), parameters + first, count, x[i], g, grad_parameters + first);
  });
}

}  // namespace

void head_log_prob(const HeadRows& rows, const HeadLogProb& output, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    rows.storage == ScalarType::float64 ? log_prob_row<double>(rows, output, row)
                                        : log_prob_row<float>(rows, output, row);
  }
}

void head_backward(const HeadRows& rows, const HeadBackward& output, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    rows.storage == ScalarType::float64 ? backward_row<double>(rows, output, row)
                                        : backward_row<float>(rows, output, row);
  }
}

}  // namespace ar_fast::CPU_CAPABILITY
