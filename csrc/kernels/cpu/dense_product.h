// Products of a dense weight with few rows, for samplers that come back to it at every position.
//
// The weights are read without packing. Reading them dominates the memory traffic: at each position every weight is
// read once from beyond the first cache, for all rows of the batch. A product keeps the sums of a few units with a few
// rows in registers: 12 chains or more hide the latency of a multiply-add. Lane j of a sum goes through the inputs j,
// j + lanes, ... in ascending order, and the lanes are added at the end, in the same way for every blocking. Since
// nothing is packed, a call for one position costs as much as a position of a long run.
//
// While weights are multiplied by several rows, those that follow are prefetched. Otherwise every first read of a weight
// from the third cache or from memory would be waited for: with five weights of 1536 x 512 and 16 rows this is 1.9 times
// as fast. For fewer rows than most_rows the processor's own prefetcher keeps up, and more instructions would cost time.
#pragma once

#include "vec_math.h"

namespace ar_fast::CPU_CAPABILITY {

constexpr int most_rows = 4;           // rows of the batch whose sums are in registers
constexpr int64_t unit_group = 6;      // units whose weights stay in the first cache for several blocks of rows

// How many units are computed with this many rows: if these are all rows, and if they are the rest after full blocks.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int most_sums = 24;          // in 32 registers
#else
constexpr int most_sums = 12;          // in 16 registers
#endif
constexpr int units_alone(int rows) { return rows == 1 ? 8 : most_sums / rows; }
constexpr int units_behind = units_alone(most_rows);

// sums[r * Units + u] = the product of row u of the weight with x[r], which has zeros behind its last unit. With
// most_rows rows it prefetches `bytes` bytes from `ahead` on.
template <int Rows, int Units, typename S, typename T>
AR_FAST_INLINE void dots(const S* weight, const T* const* x, int64_t hidden, const char* ahead, int64_t bytes,
                         T* sums) {
  constexpr int64_t width = Vec<T>::size(), line = 64;
  const int64_t bytes_per_step = hidden < width ? 0 : bytes / (hidden / width);
  auto sum = vectors<Rows * Units>([](auto) { return zero<T>(); });
  const auto add = [&](int64_t k, const auto& load_weight) __attribute__((always_inline)) {
    if constexpr (Rows < Units) {
      const auto value = vectors<Rows>([&](auto r) { return in_register<T>(Vec<T>::loadu(x[r] + k)); });
      unroll<Units>([&](auto u) {
        const Vec<T> w = in_register<T>(load_weight(weight + u * hidden + k));
        unroll<Rows>([&](auto r) { sum[r * Units + u] = at::vec::fmadd(value[r], w, sum[r * Units + u]); });
      });
    } else {
      const auto w = vectors<Units>([&](auto u) { return in_register<T>(load_weight(weight + u * hidden + k)); });
      unroll<Rows>([&](auto r) {
        const Vec<T> value = in_register<T>(Vec<T>::loadu(x[r] + k));
        unroll<Units>([&](auto u) { sum[r * Units + u] = at::vec::fmadd(value, w[u], sum[r * Units + u]); });
      });
    }
  };
  int64_t k = 0;
  for (; k + width <= hidden; k += width, ahead += bytes_per_step) {
    if constexpr (Rows == most_rows) {
      for (int64_t byte = 0; byte < bytes_per_step; byte += line) __builtin_prefetch(ahead + byte);
    }
    add(k, [](const S* data) __attribute__((always_inline)) { return load(data); });
  }
  if (k < hidden) {
    const int64_t rest = hidden - k;
    add(k, [rest](const S* data) __attribute__((always_inline)) -> Vec<T> { return load_partial(data, rest); });
  }
  sum_across(sum, sums);
}

// out[r * out_stride + u] = bias[u] + the product of row u of a weight with x[r].
template <typename S, typename T>
class Product {
 public:
  Product(const S* weight, const T* bias, int64_t hidden, T* out, int64_t out_stride)
      : weight_(weight), bias_(bias), hidden_(hidden), out_(out), out_stride_(out_stride) {}

  void run(int64_t units, const T* const* x, int64_t rows) const {
    const int64_t row_bytes = hidden_ * static_cast<int64_t>(sizeof(S));
    if (rows <= most_rows) {
      Ahead ahead{at(units_alone(static_cast<int>(rows))), row_bytes};
      switch (rows) {
        case 1: return block<1, units_alone(1)>(0, units, x, 0, ahead);
        case 2: return block<2, units_alone(2)>(0, units, x, 0, ahead);
        case 3: return block<3, units_alone(3)>(0, units, x, 0, ahead);
        default: return block<4, units_alone(4)>(0, units, x, 0, ahead);
      }
    }
    for (int64_t u = 0; u < units; u += unit_group) {
      const int64_t end = u + unit_group < units ? u + unit_group : units;
      // The blocks of rows share the weights of the next group.
      Ahead ahead{at(u + unit_group), row_bytes / ((rows + most_rows - 1) / most_rows)};
      int64_t first = 0;
      for (; first + most_rows <= rows; first += most_rows) block<most_rows, units_behind>(u, end, x, first, ahead);
      switch (rows - first) {
        case 1: block<1, units_behind>(u, end, x, first, ahead); break;
        case 2: block<2, units_behind>(u, end, x, first, ahead); break;
        case 3: block<3, units_behind>(u, end, x, first, ahead); break;
        default: break;
      }
    }
  }

 private:
  // What is prefetched next, and how much of it for each unit that is multiplied. It may end behind the weights.
  struct Ahead {
    const char* from;
    int64_t bytes_per_unit;
  };

  const char* at(int64_t u) const { return reinterpret_cast<const char*>(weight_ + u * hidden_); }

  template <int Rows, int Units>
  void block(int64_t u, int64_t end, const T* const* x, int64_t first, Ahead& ahead) const {
    for (; u + Units <= end; u += Units) write<Rows, Units>(u, x, first, ahead);
    for (; u < end; ++u) write<Rows, 1>(u, x, first, ahead);
  }

  template <int Rows, int Units>
  AR_FAST_INLINE void write(int64_t u, const T* const* x, int64_t first, Ahead& ahead) const {
    T sums[Rows * Units];
    const int64_t bytes = ahead.bytes_per_unit * Units;
    dots<Rows, Units>(weight_ + u * hidden_, x + first, hidden_, ahead.from, bytes, sums);
    ahead.from += bytes;
    for (int r = 0; r < Rows; ++r) {
      for (int i = 0; i < Units; ++i) out_[(first + r) * out_stride_ + u + i] = bias_[u + i] + sums[r * Units + i];
    }
  }

  const S* weight_;
  const T* bias_;
  const int64_t hidden_;
  T* out_;
  const int64_t out_stride_;
};

}  // namespace ar_fast::CPU_CAPABILITY
