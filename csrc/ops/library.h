// The library's name. The emulated library compiles the same ops and the same CUDA kernels as plain C++: its ops exist
// beside the real ones under another name and take CPU tensors, so that the tests run the CUDA code anywhere.
#pragma once

#include <torch/library.h>

#if defined(AR_FAST_EMULATE_CUDA)
#define AR_FAST_LIBRARY ar_fast_emulated
#define AR_FAST_CUDA_KEY CPU
#else
#define AR_FAST_LIBRARY ar_fast
#define AR_FAST_CUDA_KEY CUDA
#endif

#define AR_FAST_STRINGIFY_(name) #name
#define AR_FAST_STRINGIFY(name) AR_FAST_STRINGIFY_(name)
