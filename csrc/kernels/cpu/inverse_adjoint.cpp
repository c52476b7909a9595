// The backward sweep of an inverse. A level has few units, so vectors run along the rows of the batch: the adjoints of
// some rows lie unit by unit, a unit's rows side by side, and a weight is a factor of all of them.
#include "inverse_adjoint_cpu.h"

#include <algorithm>

#include "vec_math.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int most_vectors = 2;
constexpr int most_columns = 4;

template <typename T>
constexpr int64_t most_rows() {
  return most_vectors * Vec<T>::size();
}

// Columns of the source's adjoints, [Columns][Vectors] vectors, get what `above` units, [units][Vectors] vectors, give
// them.
template <int Columns, int Vectors, typename T>
void gather(const T* weight, int64_t weight_row, int64_t units, const T* above, T* source) {
  constexpr int64_t lanes = Vec<T>::size();
  Vec<T> sums[Columns][Vectors];
  AR_FAST_UNROLL
  for (int c = 0; c < Columns; ++c) {
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) sums[c][v] = Vec<T>::loadu(source + (c * Vectors + v) * lanes);
  }
  for (int64_t u = 0; u < units; ++u) {
    Vec<T> adjoint[Vectors];
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) adjoint[v] = in_register<T>(Vec<T>::loadu(above + (u * Vectors + v) * lanes));
    AR_FAST_UNROLL
    for (int c = 0; c < Columns; ++c) {
      const Vec<T> factor = in_register<T>(Vec<T>(weight[u * weight_row + c]));
      AR_FAST_UNROLL
      for (int v = 0; v < Vectors; ++v) sums[c][v] = at::vec::fmadd(factor, adjoint[v], sums[c][v]);
    }
  }
  AR_FAST_UNROLL
  for (int c = 0; c < Columns; ++c) {
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) sums[c][v].store(source + (c * Vectors + v) * lanes);
  }
}

template <int Vectors, typename T>
void gather_columns(const T* weight, int64_t weight_row, int64_t units, int64_t columns, const T* above, T* source) {
  constexpr int64_t lanes = Vec<T>::size();
  for (int64_t c = 0; c < columns; c += most_columns) {
    T* const own = source + c * Vectors * lanes;
    switch (std::min<int64_t>(most_columns, columns - c)) {
      case 1: gather<1, Vectors>(weight + c, weight_row, units, above, own); break;
      case 2: gather<2, Vectors>(weight + c, weight_row, units, above, own); break;
      case 3: gather<3, Vectors>(weight + c, weight_row, units, above, own); break;
      default: gather<most_columns, Vectors>(weight + c, weight_row, units, above, own);
    }
  }
}

template <int Vectors, typename T>
void sweep(const InverseAdjoint& own, int64_t row_begin, int64_t rows, T* scratch) {
  constexpr int64_t lanes = Vec<T>::size(), width = Vectors * lanes;
  const auto of_value = [&](int64_t value) { return scratch + own.offsets[value] * width; };
  const auto ends_of = [&](int64_t value) { return own.ends + value * (own.levels + 1); };
  // A column of a matrix with rows `apart`; zeros beyond the last row.
  const auto column = [&](const T* first, int64_t apart, T* values) {
    for (int64_t r = 0; r < width; ++r) values[r] = r < rows ? first[(row_begin + r) * apart] : T(0);
  };
  const auto add = [&](T* to, const T* from, const T* factor) {
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      const Vec<T> value = Vec<T>::loadu(from + v * lanes), sum = Vec<T>::loadu(to + v * lanes);
      if (factor == nullptr) {
        (sum + value).store(to + v * lanes);
      } else {
        at::vec::fmadd(Vec<T>::loadu(factor + v * lanes), value, sum).store(to + v * lanes);
      }
    }
  };
  const T *grad = static_cast<const T*>(own.grad), *factors = static_cast<const T*>(own.factors);
  for (int64_t d = 0; d < own.variables; ++d) column(grad + d, own.variables, scratch + d * width);
  std::fill(of_value(1), of_value(own.count + 1), T(0));
  T values[most_vectors * lanes];
  for (int64_t level = own.levels - 1; level >= 0; --level) {
    // The adjoints of this level's variables are complete: all that see them belong to later levels.
    const int64_t* const known = ends_of(0);
    const int64_t stop = level + 1 < own.levels ? known[level + 2] : own.variables;
    for (int64_t d = known[level + 1]; d < stop; ++d) {
      for (int64_t k = d * own.parameters; k < (d + 1) * own.parameters; ++k) {
        column(factors + k, own.variables * own.parameters, values);
        T* const to = of_value(own.count) + k * width;
        std::fill(to, to + width, T(0));
        add(to, of_value(0) + d * width, values);
      }
    }
    for (int64_t s = own.count - 1; s >= 0; --s) {
      const InverseAdjointStep& step = own.steps[s];
      const int64_t *made = ends_of(s + 1), *read = ends_of(step.source);
      const T* const above = of_value(s + 1);
      if (step.weight != nullptr) {
        // The units that this level computes are seen by units of this level and of later ones.
        const int64_t first = made[level], units = own.offsets[s + 2] - own.offsets[s + 1] - first;
        const int64_t left = read[level];
        gather_columns<Vectors>(static_cast<const T*>(step.weight) + first * step.weight_row + left, step.weight_row,
                                units, read[level + 1] - left, above + first * width,
                                of_value(step.source) + left * width);
        continue;
      }
      for (int64_t u = made[level]; u < made[level + 1]; ++u) {
        if (step.slope != nullptr) column(static_cast<const T*>(step.slope) + u, step.slope_row, values);
        add(of_value(step.source) + u * width, above + u * width, step.slope == nullptr ? nullptr : values);
        if (step.other >= 0) add(of_value(step.other) + u * width, above + u * width, nullptr);
      }
    }
  }
  T* const adjoint = static_cast<T*>(own.adjoint);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < own.variables; ++d) adjoint[(row_begin + r) * own.variables + d] = scratch[d * width + r];
  }
}

template <typename T>
void sweep_rows(const InverseAdjoint& own, int64_t row_begin, int64_t row_end, T* scratch) {
  for (int64_t row = row_begin; row < row_end; row += most_rows<T>()) {
    const int64_t rows = std::min(most_rows<T>(), row_end - row);
    rows > Vec<T>::size() ? sweep<most_vectors>(own, row, rows, scratch) : sweep<1>(own, row, rows, scratch);
  }
}

}  // namespace

void inverse_adjoint_rows(ScalarType storage, int64_t* rows) {
  *rows = storage == ScalarType::float64 ? most_rows<double>() : most_rows<float>();
}

void inverse_adjoint(const InverseAdjoint& own, int64_t row_begin, int64_t row_end, void* scratch) {
  own.storage == ScalarType::float64 ? sweep_rows(own, row_begin, row_end, static_cast<double*>(scratch))
                                     : sweep_rows(own, row_begin, row_end, static_cast<float*>(scratch));
}

}  // namespace ar_fast::CPU_CAPABILITY
