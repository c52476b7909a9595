// Masked linear maps on CUDA: launchers. The contract is in kernels/masked_linear.h; every pointer is device memory,
// also the mask's: its extents and tiles are read by the kernels, so nothing synchronises and all can be captured in a
// graph.
//
// Without atomics: results are bitwise the same in every run, and a row of y or of dX does not depend on the other rows
// of its batch within one path (rows, or one tiling: in float32 the number of rows decides in which chunks a sum is
// added). Over strips both are up to the GEMM.
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

// ---- Strips: 16 bits, many rows, a sorted staircase
//
// Each strip of the staircase is a dense product, which the caller makes by a GEMM of its choice:
//   y[:, rows] = x[:, columns] W'^T + b
//   dX[:, columns] = dY[:, rows] W'
//   dW[rows, columns] = dY[:, rows]^T x[:, columns]
// where W' is the strip of the weight, with zeros where it is masked: if it is `whole`, as it lies in the weight,
// otherwise a copy. About half of the dense product is left, and each output is rounded once.

// Batches from here on take them unless another path is asked for.
constexpr int64_t masked_linear_cuda_strip_rows = 1024;

// What the host knows of a sorted staircase: the extents of rows 0, rows - 1, 2 rows - 1, ... and of the last one.
struct MaskSteps {
  int64_t rows, count;             // count - 1 <= mask_most_blocks
  const int64_t* extents;
};

struct MaskedStrip {
  int row, row_end, column, column_end;
  bool whole;
  int64_t offset;                  // of the copy in the buffer, in elements: [rows, columns], contiguous
};

struct MaskedStrips {
  int count = 0;                   // 0: take the tiles
  MaskedStrip strip[mask_most_blocks + 1];
  int64_t buffer_elements = 0;     // that may be copied at a time: a quarter of the weight, or 8 MB
};

// As many strips as the waves of their products ask for on the current device. None where operands cannot be read 128
// bits at a time, before sm_80, and where a strip would be a larger part of the weight than may be copied.
cudaError_t masked_linear_strips_cuda(MaskedLinearProduct product, const MaskedLinear& arguments,
                                      const MaskSteps& steps, MaskedStrips& strips);

// The copies of strips first ... end - 1.
cudaError_t masked_linear_copy_cuda(const MaskedLinear& arguments, const MaskedStrips& strips, int first, int end,
                                    void* buffer, cudaStream_t stream);

// After all products: y and dX are NaN only where the weights that the mask allows make them so, and y has its
// activation; dW is zero where the weight is masked.
cudaError_t masked_linear_finish_cuda(MaskedLinearProduct product, const MaskedLinear& arguments, cudaStream_t stream);

}  // namespace ar_fast
