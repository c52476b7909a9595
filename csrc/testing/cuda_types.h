// The CUDA runtime types that launchers show to the ops floor, for the emulation: no CUDA header is needed.
#pragma once

#include <cstdint>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorMisalignedAddress = 716,
  cudaErrorLaunchFailure = 719,
};

using cudaStream_t = struct CUstream_st*;

namespace ar_fast::emulation {

// While launches are noted and not run, notes a product by torch's GEMM, (rows, sum) by (sum, columns), and returns
// true.
bool note_product(int64_t rows, int64_t columns, int64_t sum);

}  // namespace ar_fast::emulation
