// Transposes a matrix, by squares of vectors if torch can transpose those.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <type_traits>

namespace ar_fast::CPU_CAPABILITY {

// out[c][r] = in[r][c]
template <typename Compute>
void transpose(const Compute* in, int64_t in_stride, Compute* out, int64_t out_stride, int64_t rows, int64_t columns) {
  if constexpr (std::is_same_v<Compute, float>) {
#if defined(CPU_CAPABILITY_AVX512)
    at::vec::transpose_mxn<float>(in, in_stride, out, out_stride, static_cast<int>(rows), static_cast<int>(columns));
    return;
#elif defined(CPU_CAPABILITY_AVX2)
    const int64_t full_rows = rows / 8 * 8, full_columns = columns / 8 * 8;
    for (int64_t r = 0; r < full_rows; r += 8) {
      for (int64_t c = 0; c < full_columns; c += 8) {
        at::vec::transpose_mxn<float, 8, 8>(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = r < full_rows ? full_columns : 0; c < columns; ++c) {
        out[c * out_stride + r] = in[r * in_stride + c];
      }
    }
    return;
#endif
  }
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) out[c * out_stride + r] = in[r * in_stride + c];
  }
}

}  // namespace ar_fast::CPU_CAPABILITY
