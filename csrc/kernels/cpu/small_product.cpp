// Products of small matrices: tiles of six rows by two vectors of columns in registers, over all of the sum at once.
#include "small_product_cpu.h"

#include <algorithm>

#include "transpose.h"
#include "vec_math.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int most_rows = 6;
constexpr int most_vectors = 2;

template <typename T>
constexpr int64_t tile_columns() {
  return most_vectors * Vec<T>::size();
}

template <typename T>
int64_t packed_width(int64_t columns) {
  return (columns + Vec<T>::size() - 1) / Vec<T>::size() * Vec<T>::size();
}

// c has `columns` columns from here on, of which the tile takes as many as it has.
template <int Rows, int Vectors, typename T>
void tile(const SmallProduct& own, const T* a, const T* p, const T* bias, T* c, int64_t columns) {
  constexpr int64_t lanes = Vec<T>::size();
  const int64_t width = packed_width<T>(own.columns);
  const auto count = [&](int v) { return static_cast<int>(std::min(lanes, columns - v * lanes)); };
  Vec<T> sums[Rows][Vectors];
  AR_FAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      sums[r][v] = bias == nullptr ? zero<T>() : Vec<T>::loadu(bias + r * own.bias_row + v * lanes, count(v));
    }
  }
  for (int64_t k = 0; k < own.sums; ++k) {
    Vec<T> row[Vectors];
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) row[v] = in_register<T>(Vec<T>::loadu(p + k * width + v * lanes));
    AR_FAST_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Vec<T> factor = in_register<T>(Vec<T>(a[r * own.a_row + k * own.a_sum]));
      AR_FAST_UNROLL
      for (int v = 0; v < Vectors; ++v) sums[r][v] = at::vec::fmadd(factor, row[v], sums[r][v]);
    }
  }
  AR_FAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      activate<T>(own.activation, sums[r][v]).store(c + r * own.columns + v * lanes, count(v));
    }
  }
}

template <int Vectors, typename T>
void tile_of_rows(int64_t rows, const SmallProduct& own, const T* a, const T* p, const T* bias, T* c, int64_t columns) {
  switch (rows) {
    case 1: return tile<1, Vectors>(own, a, p, bias, c, columns);
    case 2: return tile<2, Vectors>(own, a, p, bias, c, columns);
    case 3: return tile<3, Vectors>(own, a, p, bias, c, columns);
    case 4: return tile<4, Vectors>(own, a, p, bias, c, columns);
    case 5: return tile<5, Vectors>(own, a, p, bias, c, columns);
    default: return tile<most_rows, Vectors>(own, a, p, bias, c, columns);
  }
}

template <typename T>
void product(const SmallProduct& own, int64_t row_begin, int64_t row_end) {
  const T *a = static_cast<const T*>(own.a), *p = static_cast<const T*>(own.p);
  const T* bias = static_cast<const T*>(own.bias);
  T* c = static_cast<T*>(own.c);
  for (int64_t m = row_begin; m < row_end; m += most_rows) {
    const int64_t rows = std::min<int64_t>(most_rows, row_end - m);
    for (int64_t n = 0; n < own.columns; n += tile_columns<T>()) {
      const int64_t columns = own.columns - n;
      const T* const own_bias = bias == nullptr ? nullptr : bias + m * own.bias_row + n;
      const auto run = columns > Vec<T>::size() ? tile_of_rows<most_vectors, T> : tile_of_rows<1, T>;
      run(rows, own, a + m * own.a_row, p + n, own_bias, c + m * own.columns + n, columns);
    }
  }
}

// to[i] = value[i] mask[i], or value[i] without a mask.
template <typename T>
void masked(const T* value, const T* mask, int64_t count, T* to) {
  if (mask == nullptr) {
    std::copy(value, value + count, to);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = value[i] * mask[i];
  }
}

template <typename T>
void pack(const SmallProductSource& source, T* packed) {
  const T *value = static_cast<const T*>(source.value), *mask = static_cast<const T*>(source.mask);
  const int64_t width = packed_width<T>(source.columns);
  const auto take = [&](int64_t from, int64_t count, T* to) {
    masked(value + from, mask == nullptr ? nullptr : mask + from, count, to);
  };
  for (int64_t k = 0; k < source.sums; ++k) {
    for (int64_t n = source.columns; n < width; ++n) packed[k * width + n] = T(0);
  }
  if (!source.transposed) {
    for (int64_t k = 0; k < source.sums; ++k) take(k * source.columns, source.columns, packed + k * width);
    return;
  }
  // Rows of the source are columns here: blocks of them are multiplied along the rows, and transposed.
  constexpr int64_t most_columns = 16, most_sums = 128;
  T block[most_columns * most_sums];
  for (int64_t n = 0; n < source.columns; n += most_columns) {
    const int64_t columns = std::min(most_columns, source.columns - n);
    for (int64_t k = 0; k < source.sums; k += most_sums) {
      const int64_t sums = std::min(most_sums, source.sums - k);
      for (int64_t i = 0; i < columns; ++i) take((n + i) * source.sums + k, sums, block + i * most_sums);
      transpose(block, most_sums, packed + k * width + n, width, columns, sums);
    }
  }
}

template <typename T>
AR_FAST_INLINE Vec<T> before_activation(Activation activation, const Vec<T>& grad, const Vec<T>& value) {
  const Vec<T> one(T(1)), nothing = zero<T>();
  switch (activation) {
    case Activation::relu: return Vec<T>::blendv(grad, nothing, value <= nothing);
    case Activation::sigmoid: return grad * (one - value) * value;
    case Activation::tanh: return grad * (one - value * value);
    case Activation::elu: return Vec<T>::blendv(grad, grad * (value + one), value <= nothing);
    case Activation::softplus: return grad * value.neg().expm1().neg();
    case Activation::leaky_relu: return Vec<T>::blendv(grad * Vec<T>(T(0.01)), grad, value > nothing);
    default: return grad;
  }
}

template <typename T>
void activation_backward(const SmallActivationBackward& own, int64_t column_begin, int64_t column_end) {
  // Sums of blocks are added up, so that rounding grows slowly.
  constexpr int64_t lanes = Vec<T>::size(), block = 64;
  const T *grads = static_cast<const T*>(own.grad), *values = static_cast<const T*>(own.value);
  T *results = static_cast<T*>(own.result), *sums = static_cast<T*>(own.sums);
  for (int64_t n = column_begin; n < column_end; n += lanes) {
    const int count = static_cast<int>(std::min(lanes, column_end - n));
    Vec<T> total = zero<T>();
    for (int64_t begin = 0; begin < own.rows; begin += block) {
      Vec<T> sum = zero<T>();
      for (int64_t m = begin; m < std::min(own.rows, begin + block); ++m) {
        const int64_t at = m * own.columns + n;
        Vec<T> grad = Vec<T>::loadu(grads + at, count);
        if (own.activation != Activation::none) {
          grad = before_activation<T>(own.activation, grad, Vec<T>::loadu(values + at, count));
          grad.store(results + at, count);
        }
        sum = sum + grad;
      }
      total = total + sum;
    }
    total.store(sums + n, count);
  }
}

}  // namespace

void small_product_width(ScalarType storage, int64_t columns, int64_t* width) {
  *width = storage == ScalarType::float64 ? packed_width<double>(columns) : packed_width<float>(columns);
}

void small_product_pack(const SmallProductSource& source, void* packed) {
  source.storage == ScalarType::float64 ? pack(source, static_cast<double*>(packed))
                                        : pack(source, static_cast<float*>(packed));
}

void small_product(const SmallProduct& own, int64_t row_begin, int64_t row_end) {
  own.storage == ScalarType::float64 ? product<double>(own, row_begin, row_end)
                                     : product<float>(own, row_begin, row_end);
}

void small_activation_backward(const SmallActivationBackward& own, int64_t column_begin, int64_t column_end) {
  own.storage == ScalarType::float64 ? activation_backward<double>(own, column_begin, column_end)
                                     : activation_backward<float>(own, column_begin, column_end);
}

}  // namespace ar_fast::CPU_CAPABILITY
