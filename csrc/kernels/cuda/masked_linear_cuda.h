// Masked linear maps on CUDA: launchers. The contract is in kernels/masked_linear.h; every pointer is device memory,
// also the mask's: its extents and tiles are read by the kernels, so nothing synchronises and all can be captured in a
// graph.
//
// Without atomics and without splitting a sum over blocks: results are bitwise the same in every run, and a row of y or
// of dX does not depend on the other rows of its batch within one path (rows or tiles).
#pragma once

#include "../masked_linear.h"
#include "launcher.h"

namespace ar_fast {

// Batches up to here take the `rows` path unless another is asked for.
constexpr int64_t masked_linear_cuda_few_rows = 8;

// The weight streamed once past a few rows of the batch; any batch, but meant for small ones. y and dX.
cudaError_t masked_linear_rows_cuda(const MaskedLinear& arguments, cudaStream_t stream);
cudaError_t masked_linear_grad_input_rows_cuda(const MaskedLinear& arguments, cudaStream_t stream);

// Tiles of 64 x 64 that stop at the mask's staircase.
cudaError_t masked_linear_tiles_cuda(const MaskedLinear& arguments, cudaStream_t stream);
cudaError_t masked_linear_grad_input_tiles_cuda(const MaskedLinear& arguments, cudaStream_t stream);
cudaError_t masked_linear_grad_weight_tiles_cuda(const MaskedLinear& arguments, cudaStream_t stream);

}  // namespace ar_fast
