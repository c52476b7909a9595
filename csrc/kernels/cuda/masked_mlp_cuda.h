// One-pass sampling of a masked perceptron on CUDA: the launcher. The contract is in kernels/masked_mlp.h; every
// pointer, including those inside the layers, points to device memory.
//
// The work is enqueued on `stream` without a synchronisation, in a number of launches that the sizes give, so that a
// graph can capture it. The order of a row's additions depends on the network only, so a row depends neither on the
// batch it is drawn in nor on how its positions are cut into calls.
#pragma once

#include "../masked_mlp.h"
#include "launcher.h"

namespace ar_fast {

// How the launcher cuts the work, from the network's sizes alone.
struct MaskedMlpCut {
  int64_t block;                   // positions of a launch; large networks: a few, and a product before each launch
  int64_t warps;                   // that share the units of a row
  int64_t rows;                    // of the batch in a block of threads
  int64_t features, parameters;    // that shared memory holds for a row: what a launch works on, or 0
  int64_t scratch_bytes;           // device memory that the launches need besides the state
};

MaskedMlpCut masked_mlp_sample_cuda_cut(const MaskedMlpSample& sample);

// batch > 0.
cudaError_t masked_mlp_sample_cuda(const MaskedMlpSample& sample, void* scratch, cudaStream_t stream);

// Multiply-adds that the warps of a row do one after another at a position, on average: from here on a network is drawn
// in blocks of positions. The tests lower it.
#if defined(AR_FAST_EMULATE_CUDA)
inline int64_t kBlockedInputs = 2048;
#else
constexpr int64_t kBlockedInputs = 2048;
#endif

}  // namespace ar_fast
