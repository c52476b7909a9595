// Products of a dense weight with few rows, for samplers that come back to it at every position. A warp computes 4
// weight rows x 4 rows of the batch, or 16 x 1, its lanes along the inputs: 16 sums a lane, 128 bits a load. The order
// of a sum depends on the number of inputs alone, not on which of the two it is a part of.
#pragma once

#include "runtime.h"

namespace ar_fast::cuda {

constexpr int kDots = 16;          // of a warp's product
constexpr int kBatchRows = 4;      // of it, where there is more than one

// Of weight rows of `inputs` elements and x, which has zeros up to a whole vector of S. result: lane 4 i has the sums
// of number i, and of number 8 + i, where number r * weight_rows + w is that of weight row w and row r.
template <typename S, bool in_shared, int weight_rows, int batch_rows, typename T>
__device__ __forceinline__ void dense_dots(const S* const (&weights)[weight_rows], const T* const (&x)[batch_rows],
                                           int inputs, bool aligned, T (&result)[2]) {
  static_assert(weight_rows * batch_rows == kDots);
  constexpr int size = Vector<S>::size, lanes = Vector<T>::size;
  T sums[2][8] = {};
  // 16 weight rows have enough loads under way without a second turn.
#pragma unroll (batch_rows > 1 ? 2 : 1)
  for (int k = lane_id() * size; k < inputs; k += kWarpSize * size) {
    Vector<S> w[weight_rows];
#pragma unroll
    for (int i = 0; i < weight_rows; ++i) {
      if constexpr (in_shared) {
        w[i] = load_shared_vector(weights[i] + k);
      } else {
        w[i] = load_stored(weights[i], k, inputs, aligned);
      }
    }
#pragma unroll
    for (int r = 0; r < batch_rows; ++r) {
#pragma unroll
      for (int v = 0; v < size / lanes; ++v) {
        const Vector<T> value = load_shared_vector(x[r] + k + v * lanes);
#pragma unroll
        for (int j = 0; j < lanes; ++j) {
#pragma unroll
          for (int i = 0; i < weight_rows; ++i) {
            T& sum = sums[(r * weight_rows + i) / 8][(r * weight_rows + i) % 8];
            sum = fma(value.values[j], to_compute(w[i].values[v * lanes + j]), sum);
          }
        }
      }
    }
  }
  result[0] = warp_sum_8(sums[0]);
  result[1] = warp_sum_8(sums[1]);
}

// out[r * stride + w] = weight_at(w) times x_at(r), for `count` rows of the weight and `rows` rows of the batch, shared
// out among the warps of a block. in_shared: the weights lie in shared memory, with zeros up to a whole vector.
// batch_rows: of a warp's product, kBatchRows or 1.
template <typename S, bool in_shared, int batch_rows = kBatchRows, typename WeightAt, typename XAt, typename T>
__device__ __forceinline__ void dense_products(int warp, int warps, int inputs, int count, int rows, bool aligned,
                                               const WeightAt& weight_at, const XAt& x_at, T* out, int stride) {
  constexpr int weight_rows = kDots / batch_rows;
  const int across = (count + weight_rows - 1) / weight_rows;
  const int tasks = across * ((rows + batch_rows - 1) / batch_rows);
  for (int task = warp; task < tasks; task += warps) {
    const int first_weight = task % across * weight_rows, first_row = task / across * batch_rows;
    const S* weights[weight_rows];
    const T* x[batch_rows];
#pragma unroll
    for (int i = 0; i < weight_rows; ++i) weights[i] = weight_at(min(first_weight + i, count - 1));
#pragma unroll
    for (int i = 0; i < batch_rows; ++i) x[i] = x_at(min(first_row + i, rows - 1));
    T result[2];
    dense_dots<S, in_shared, weight_rows, batch_rows>(weights, x, inputs, aligned, result);
    if (lane_id() % 4 == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int number = 8 * half + lane_id() / 4;
        const int w = first_weight + number % weight_rows, r = first_row + number / weight_rows;
        if (w < count && r < rows) out[r * stride + w] = result[half];
      }
    }
  }
}

}  // namespace ar_fast::cuda
