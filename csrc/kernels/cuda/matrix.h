// ldmatrix, mma.sync m16n8k16 of 16-bit operands and m16n8k8 of tf32. Included by runtime.h; a .cu file includes that.
#pragma once

namespace ar_fast::cuda {

// Loads four 8 x 8 matrices of 16-bit elements. Lane l passes the address (16-byte aligned) of row l % 8 of matrix
// l / 8. It receives the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each matrix, or with `transposed` of each
// transposed matrix.
template <bool transposed = false>
__device__ __forceinline__ void load_matrices(uint32_t (&fragment)[4], const void* shared_row) {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::check_aligned(shared_row, 16, "ldmatrix");
  const auto result =
      emulation::warp_collective<const void*, emulation::Matrices, emulation::load_matrices<transposed>>(
          {"ldmatrix", __FILE__, __LINE__}, kFullMask, shared_row);
  for (int i = 0; i < 4; ++i) fragment[i] = result.fragment[i];
#else
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
  }
#endif
}

#if !defined(AR_FAST_EMULATE_CUDA)
// sm_75 has no m16n8k16. This uses two m16n8k8 for float16; for bfloat16 it computes the sums from shuffled operands
// (slow, with the same result).
__device__ __forceinline__ void multiply_matrices_before_sm80(float (&c)[4], const uint32_t (&a)[4],
                                                              const uint32_t (&b)[2], float16) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[2]), "r"(a[3]), "r"(b[1]));
}

__device__ __forceinline__ void multiply_matrices_before_sm80(float (&c)[4], const uint32_t (&a)[4],
                                                              const uint32_t (&b)[2], bfloat16) {
  const int lane = lane_id();
#pragma unroll
  for (int quad = 0; quad < 4; ++quad) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const uint32_t upper = __shfl_sync(kFullMask, a[2 * k], lane / 4 * 4 + quad);
      const uint32_t lower = __shfl_sync(kFullMask, a[2 * k + 1], lane / 4 * 4 + quad);
      const uint32_t left = __shfl_sync(kFullMask, b[k], lane % 4 * 8 + quad);
      const uint32_t right = __shfl_sync(kFullMask, b[k], lane % 4 * 8 + 4 + quad);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto element = [half](uint32_t pair) {
          return __uint_as_float(half == 0 ? pair << 16 : pair & 0xFFFF0000u);
        };
        c[0] = fmaf(element(upper), element(left), c[0]);
        c[1] = fmaf(element(upper), element(right), c[1]);
        c[2] = fmaf(element(lower), element(left), c[2]);
        c[3] = fmaf(element(lower), element(right), c[3]);
      }
    }
  }
}
#endif

// c (16 x 8, float) += a (16 x 16) b (16 x 8), a and b of T = bfloat16 or float16; every lane takes part. Lane l holds,
// with g = l / 4 and t = 2 (l % 4): a[0] = a(g, t..t+1), a[1] = a(g + 8, t..), a[2] = a(g, t + 8..), a[3] = a(g + 8, t
// + 8..); b[0] = b(t..t+1, g), b[1] = b(t + 8.., g); c = c(g, t), c(g, t + 1), c(g + 8, t), c(g + 8, t + 1).
template <typename T>
__device__ __forceinline__ void multiply_matrices(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  constexpr bool is_bfloat16 = std::is_same_v<T, bfloat16>;
  static_assert(is_bfloat16 || std::is_same_v<T, float16>, "16-bit operands");
#if defined(AR_FAST_EMULATE_CUDA)
  constexpr auto to_float = is_bfloat16 ? emulation::bfloat16_to_float : emulation::half_to_float;
  const emulation::MatrixOperand operand = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
  const auto result = emulation::warp_collective<emulation::MatrixOperand, emulation::MatrixResult,
                                                 emulation::multiply_matrices<to_float>>(
      {"mma.sync", __FILE__, __LINE__}, kFullMask, operand);
  for (int i = 0; i < 4; ++i) c[i] = result.c[i];
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (is_bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  multiply_matrices_before_sm80(c, a, b, T{});
#endif
}

// sm_75 has no tf32: code for it does not call the two functions below.

// The tf32 (8 bits of exponent, 10 of fraction) that is nearest to the float with the given bits, ties away from zero.
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t value) {
#if defined(AR_FAST_EMULATE_CUDA)
  return emulation::round_to_tf32(value);
#else
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(__uint_as_float(value)));
  return result;
#endif
}

// c (16 x 8, float) += a (16 x 8) b (8 x 8), a and b of tf32; every lane takes part. Lane l holds, with g = l / 4 and
// t = l % 4: a[0] = a(g, t), a[1] = a(g + 8, t), a[2] = a(g, t + 4), a[3] = a(g + 8, t + 4); b[0] = b(t, g),
// b[1] = b(t + 4, g); c as for 16-bit operands.
template <>
__device__ __forceinline__ void multiply_matrices<float>(float (&c)[4], const uint32_t (&a)[4],
                                                         const uint32_t (&b)[2]) {
#if defined(AR_FAST_EMULATE_CUDA)
  const emulation::MatrixOperand operand = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
  const auto result =
      emulation::warp_collective<emulation::MatrixOperand, emulation::MatrixResult, emulation::multiply_matrices_tf32>(
          {"mma.sync", __FILE__, __LINE__}, kFullMask, operand);
  for (int i = 0; i < 4; ++i) c[i] = result.c[i];
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace ar_fast::cuda
