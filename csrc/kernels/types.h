// Types shared by all kernels on CPU and CUDA. This header includes no torch header and no CUDA header.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define AR_FAST_HOST_DEVICE __host__ __device__
#else
#define AR_FAST_HOST_DEVICE
#endif

namespace ar_fast {

// How a tensor is stored. Arithmetic is in float for the first three and in double for the last.
enum class ScalarType : int32_t { float32 = 0, float16 = 1, bfloat16 = 2, float64 = 3 };

// Activations of hidden units, with torch's default arguments. The hidden layer of a NADE and its relatives, whose
// kernels are compiled for each activation, can be sigmoid, tanh or relu; a layer of a masked network can be any.
enum class Activation : int32_t {
  none = 0,
  relu = 1,
  sigmoid = 2,
  tanh = 3,
  elu = 4,
  softplus = 5,
  silu = 6,
  gelu = 7,
  leaky_relu = 8,
};

// Storage of the 16-bit types; the CPU and CUDA headers define their conversions.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

}  // namespace ar_fast
