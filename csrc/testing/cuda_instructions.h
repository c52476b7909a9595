// Host versions of the PTX instructions that kernels/cuda/runtime.h wraps.
#pragma once

#include <cfloat>

#include "cuda_emulation.h"

namespace ar_fast::emulation {

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7F800000u | fraction << 13);
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

// Rounds to nearest, ties to even.
inline uint16_t float_to_half(float value) {
  const uint32_t bits = __float_as_uint(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (std::isnan(value)) return 0x7FFF;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return sign | 0x7C00u;
  if (magnitude < 6.103515625e-5f) {  // subnormal: a multiple of 2^-24
    return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 24)));
  }
  const uint32_t rounded = (bits & 0x7FFFFFFFu) + 0xFFFu + (bits >> 13 & 1u);
  return sign | static_cast<uint16_t>((rounded >> 13) - (112u << 10));
}

inline float bfloat16_to_float(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

inline float flush_subnormal(float value) { return std::fabs(value) < FLT_MIN ? std::copysign(0.0f, value) : value; }

struct Matrices {
  uint32_t fragment[4];
};

// Lane l brings the address of row l % 8 of matrix l / 8. Lane l gets elements 2 (l % 4) and + 1 of row l / 4 of each
// matrix; transposed, of the transposed matrix.
template <bool transposed>
void load_matrices(const void* const* const rows[32], Matrices* const results[32], uint32_t) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint32_t packed = 0;
      for (int half = 0; half < 2; ++half) {
        const int row = transposed ? 2 * (lane % 4) + half : lane / 4;
        const int column = transposed ? lane / 4 : 2 * (lane % 4) + half;
        uint16_t element;
        std::memcpy(&element, static_cast<const char*>(*rows[8 * matrix + row]) + 2 * column, sizeof element);
        packed |= static_cast<uint32_t>(element) << (16 * half);
      }
      results[lane]->fragment[matrix] = packed;
    }
  }
}

struct MatrixOperand {
  uint32_t a[4], b[2];
  float c[4];
};

struct MatrixResult {
  float c[4];
};

// c (16 x 8) += a (16 x 16) b (16 x 8), fragments as in the PTX manual, section mma.m16n8k16.
template <float (*to_float)(uint16_t)>
void multiply_matrices(const MatrixOperand* const lanes[32], MatrixResult* const results[32], uint32_t) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < 4; ++r) {
        a[group + 8 * (r % 2)][pair + half + 8 * (r / 2)] =
            to_float(static_cast<uint16_t>(lanes[lane]->a[r] >> (16 * half)));
      }
      for (int r = 0; r < 2; ++r) {
        b[pair + half + 8 * r][group] = to_float(static_cast<uint16_t>(lanes[lane]->b[r] >> (16 * half)));
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
      float sum = lanes[lane]->c[r];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      results[lane]->c[r] = sum;
    }
  }
}

// cvt.rna.tf32.f32: to 10 bits of fraction, ties away from zero.
inline uint32_t round_to_tf32(uint32_t value) {
  if ((value & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFFFFFu;  // NaN
  return (value + 0x1000u) & 0xFFFFE000u;
}

// c (16 x 8) += a (16 x 8) b (8 x 8), fragments as in the PTX manual, section mma.m16n8k8. Of an operand that was not
// rounded, the bits past a tf32's are not read.
inline void multiply_matrices_tf32(const MatrixOperand* const lanes[32], MatrixResult* const results[32], uint32_t) {
  const auto to_float = [](uint32_t tf32) { return __uint_as_float(tf32 & 0xFFFFE000u); };
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, place = lane % 4;
    for (int r = 0; r < 4; ++r) a[group + 8 * (r % 2)][place + 4 * (r / 2)] = to_float(lanes[lane]->a[r]);
    for (int r = 0; r < 2; ++r) b[place + 4 * r][group] = to_float(lanes[lane]->b[r]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
      float sum = lanes[lane]->c[r];
      for (int k = 0; k < 8; ++k) sum += a[row][k] * b[k][column];
      results[lane]->c[r] = sum;
    }
  }
}

}  // namespace ar_fast::emulation
