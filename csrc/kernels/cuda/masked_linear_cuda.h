// Masked linear maps on CUDA: launchers. The contract is in kernels/masked_linear.h; every pointer is device memory,
// also the mask's: its extents and tiles are read by the kernels, so nothing synchronises and all can be captured in a
// graph.
//
// Without atomics: results are bitwise the same in every run, and a row of y or of dX does not depend on the other rows
// of its batch within one path (rows, or one tiling: in float32 the number of rows decides in which chunks a sum is
// added).
#pragma once

#include "../masked_linear.h"
#include "launcher.h"

namespace ar_fast {

// Batches up to here take the `rows` path unless another is asked for.
constexpr int64_t masked_linear_cuda_few_rows = 8;

// The weight streamed once past a few rows of the batch; any batch, but meant for small ones. y and dX.
cudaError_t masked_linear_rows_cuda(const MaskedLinear& arguments, cudaStream_t stream);
cudaError_t masked_linear_grad_input_rows_cuda(const MaskedLinear& arguments, cudaStream_t stream);

enum class MaskedLinearProduct { y, grad_input, grad_weight };

// How a product is made by tiles on the current device.
struct MaskedLinearTiling {
  int rows, columns;               // of the outputs that a block of threads makes: 64 x 64, 128 x 128, 32 or 64 x 128
  bool matrix;                     // by mma.sync, which for float32 means tf32; otherwise by exact multiply-adds
  int chunk;                       // of the sum that a block adds up; 0 = all of it
  int64_t scratch_bytes;           // device memory for the chunks
};

// Tiles of 128 where they are enough for every multiprocessor and operands can be copied 128 bits at a time; neither
// they nor tf32 before sm_80. In exact float32, wide tiles and split sums as the sizes ask for.
cudaError_t masked_linear_tiling_cuda(MaskedLinearProduct product, const MaskedLinear& arguments,
                                      MaskedLinearTiling& tiling);

// Tiles that stop at the mask's staircase. Only here float32 may be tf32.
cudaError_t masked_linear_tiles_cuda(MaskedLinearProduct product, const MaskedLinearTiling& tiling,
                                     const MaskedLinear& arguments, void* scratch, cudaStream_t stream);

}  // namespace ar_fast
