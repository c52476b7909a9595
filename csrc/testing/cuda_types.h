// The CUDA runtime types that launchers show to the ops floor, for the emulation: no CUDA header is needed.
#pragma once

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorMisalignedAddress = 716,
  cudaErrorLaunchFailure = 719,
};

using cudaStream_t = struct CUstream_st*;
