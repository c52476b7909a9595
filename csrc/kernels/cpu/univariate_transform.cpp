// The univariate transforms of a flow's density. Affine ones are computed for vectors of numbers, which are collected
// from the rows in blocks, so that rows of a few variables fill the vectors too; splines number by number.
#include "univariate_transform_cpu.h"

#include <algorithm>

#include "transforms.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

// How many numbers a block has; a multiple of every vector's size.
constexpr int64_t block_numbers = 256;

// Calls body(first, count) for the numbers row_begin * D ... row_end * D - 1, in blocks.
template <typename Body>
void for_blocks(const UnivariateTransform& own, int64_t row_begin, int64_t row_end, const Body& body) {
  const int64_t end = row_end * own.variables;
  for (int64_t first = row_begin * own.variables; first < end; first += block_numbers) {
    body(first, std::min(block_numbers, end - first));
  }
}

// Calls body(i, row, variable) for each number of a block.
template <typename Body>
AR_FAST_INLINE void for_numbers(const UnivariateTransform& own, int64_t first, int64_t count, const Body& body) {
  int64_t row = first / own.variables, variable = first % own.variables;
  for (int64_t i = 0; i < count; ++i) {
    body(i, row, variable);
    if (++variable == own.variables) {
      variable = 0;
      ++row;
    }
  }
}

template <typename T>
struct AffineBlock {
  alignas(64) T x[block_numbers], shift[block_numbers], a[block_numbers];

  // Numbers behind the count stay zeros, which are harmless.
  void read(const UnivariateTransform& own, int64_t first, int64_t count) {
    const int64_t row_parameters = own.variables * own.count;
    const int64_t step = own.by_parameter ? 1 : own.count;
    const int64_t to_shift = univariate_parameter(own, 0, 0), to_scale = univariate_parameter(own, 0, 1);
    for_numbers(own, first, count, [&](int64_t i, int64_t row, int64_t variable) {
      const T* parameters = static_cast<const T*>(own.parameters) + row * row_parameters + variable * step;
      x[i] = static_cast<const T*>(own.x)[row * own.x_stride + variable];
      shift[i] = parameters[to_shift];
      a[i] = parameters[to_scale];
    });
    for (int64_t i = count; i < block_numbers && i % Vec<T>::size() != 0; ++i) x[i] = shift[i] = a[i] = T(0);
  }
};

template <typename T>
void affine_rows(const UnivariateTransform& own, const UnivariateTransformForward& output, int64_t row_begin,
                 int64_t row_end) {
  const bool gated = own.transform.kind == TransformKind::affine_gated;
  T* y = static_cast<T*>(output.y);
  T* log_det = static_cast<T*>(output.log_det);
  for (int64_t row = row_begin; row < row_end; ++row) log_det[row] = T(0);
  AffineBlock<T> block;
  alignas(64) T log_derivative[block_numbers];
  for_blocks(own, row_begin, row_end, [&](int64_t first, int64_t count) {
    block.read(own, first, count);
    for (int64_t i = 0; i < count; i += Vec<T>::size()) {
      const Vec<T> shift = load(block.shift + i);
      const AffineScales<T> scales = affine_scale<T>(own.transform, load(block.a + i));
      (scales.scale * load(block.x + i) + (gated ? scales.slope * shift : shift)).store(block.x + i);
      scales.log_scale.store(log_derivative + i);
    }
    std::copy(block.x, block.x + count, y + first);
    for_numbers(own, first, count, [&](int64_t i, int64_t row, int64_t) { log_det[row] += log_derivative[i]; });
  });
}

template <typename T>
void affine_backward_rows(const UnivariateTransform& own, const UnivariateTransformBackward& output, int64_t row_begin,
                          int64_t row_end) {
  const bool gated = own.transform.kind == TransformKind::affine_gated;
  const int64_t row_parameters = own.variables * own.count, step = own.by_parameter ? 1 : own.count;
  const int64_t to_shift = univariate_parameter(own, 0, 0), to_scale = univariate_parameter(own, 0, 1);
  const T* grad_log_det = static_cast<const T*>(output.grad_log_det);
  T* grad_parameters = static_cast<T*>(output.grad_parameters);
  AffineBlock<T> block;
  alignas(64) T grad_y[block_numbers] = {}, grad_log[block_numbers] = {};
  for_blocks(own, row_begin, row_end, [&](int64_t first, int64_t count) {
    block.read(own, first, count);
    std::copy_n(static_cast<const T*>(output.grad_y) + first, count, grad_y);
    for_numbers(own, first, count, [&](int64_t i, int64_t row, int64_t) { grad_log[i] = grad_log_det[row]; });
    for (int64_t i = 0; i < count; i += Vec<T>::size()) {
      const Vec<T> x = load(block.x + i), shift = load(block.shift + i), grad = load(grad_y + i);
      const AffineScales<T> scales = affine_scale<T>(own.transform, load(block.a + i));
      (grad * scales.scale).store(block.x + i);
      (gated ? grad * scales.slope : grad).store(block.shift + i);
      ((grad * (gated ? x - shift : x) * scales.scale + load(grad_log + i)) * scales.slope).store(block.a + i);
    }
    std::copy(block.x, block.x + count, static_cast<T*>(output.grad_x) + first);
    for_numbers(own, first, count, [&](int64_t i, int64_t row, int64_t variable) {
      T* parameters = grad_parameters + row * row_parameters + variable * step;
      parameters[to_shift] = block.shift[i];
      parameters[to_scale] = block.a[i];
    });
  });
}

template <typename T>
void read_parameters(const UnivariateTransform& own, int64_t row, int64_t variable, T* parameters) {
  const T* from = static_cast<const T*>(own.parameters) + row * own.variables * own.count;
  for (int64_t k = 0; k < own.count; ++k) parameters[k] = from[univariate_parameter(own, variable, k)];
}

template <typename T>
void spline_rows(const UnivariateTransform& own, const UnivariateTransformForward& output, int64_t row_begin,
                 int64_t row_end, T* scratch) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    T log_det = T(0);
    for (int64_t d = 0; d < own.variables; ++d) {
      read_parameters(own, row, d, scratch);
      T log_derivative;
      static_cast<T*>(output.y)[row * own.variables + d] =
          spline_forward(own.transform, scratch, own.count, static_cast<const T*>(own.x)[row * own.x_stride + d],
                         log_derivative);
      log_det += log_derivative;
    }
    static_cast<T*>(output.log_det)[row] = log_det;
  }
}

template <typename T>
void spline_backward_rows(const UnivariateTransform& own, const UnivariateTransformBackward& output, int64_t row_begin,
                          int64_t row_end, T* scratch) {
  T* const grads = scratch + own.count;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const T grad_log = static_cast<const T*>(output.grad_log_det)[row];
    T* to = static_cast<T*>(output.grad_parameters) + row * own.variables * own.count;
    for (int64_t d = 0; d < own.variables; ++d) {
      const int64_t at = row * own.variables + d;
      read_parameters(own, row, d, scratch);
      static_cast<T*>(output.grad_x)[at] =
          spline_backward(own.transform, scratch, own.count, static_cast<const T*>(own.x)[row * own.x_stride + d],
                          static_cast<const T*>(output.grad_y)[at], grad_log, grads);
      for (int64_t k = 0; k < own.count; ++k) to[univariate_parameter(own, d, k)] = grads[k];
    }
  }
}

template <typename T>
void forward_rows(const UnivariateTransform& own, const UnivariateTransformForward& output, int64_t row_begin,
                  int64_t row_end, void* scratch) {
  own.transform.is_affine() ? affine_rows<T>(own, output, row_begin, row_end)
                            : spline_rows<T>(own, output, row_begin, row_end, static_cast<T*>(scratch));
}

template <typename T>
void backward_rows(const UnivariateTransform& own, const UnivariateTransformBackward& output, int64_t row_begin,
                   int64_t row_end, void* scratch) {
  own.transform.is_affine() ? affine_backward_rows<T>(own, output, row_begin, row_end)
                            : spline_backward_rows<T>(own, output, row_begin, row_end, static_cast<T*>(scratch));
}

}  // namespace

void univariate_transform(const UnivariateTransform& own, const UnivariateTransformForward& output, int64_t row_begin,
                          int64_t row_end, void* scratch) {
  own.storage == ScalarType::float64 ? forward_rows<double>(own, output, row_begin, row_end, scratch)
                                     : forward_rows<float>(own, output, row_begin, row_end, scratch);
}

void univariate_transform_backward(const UnivariateTransform& own, const UnivariateTransformBackward& output,
                                   int64_t row_begin, int64_t row_end, void* scratch) {
  own.storage == ScalarType::float64 ? backward_rows<double>(own, output, row_begin, row_end, scratch)
                                     : backward_rows<float>(own, output, row_begin, row_end, scratch);
}

}  // namespace ar_fast::CPU_CAPABILITY
