// Matrix products that stop at the mask's staircase, for the CPU. One small kernel serves y, dX and dW: six units (rows
// of y^T, columns of dX^T, rows of dW) by a tile of lanes in registers, a broadcast weight per unit and step.
//
// `units` are output features of the op in sorted order; each thread takes panels of units and ranges of tiles.
// A row of the batch gives the same bits whatever the batch size, the panels and the threads.
#pragma once

#include "../masked_linear.h"
#include "dispatch.h"

namespace ar_fast {

constexpr int64_t masked_panel = mask_tile_size;

struct MaskedGemm {
  ScalarType storage;              // of the weight
  MaskPlan plan;
  const int32_t* starts;           // [I] number of sorted rows that do not see the sorted column; nested dX only
  int64_t batch;                   // B
  const void* tiles;               // see masked_gemm_tiles; from tile_begin of the part (y, dX), all (dW)
  const void* weight;              // [O, I] storage, contiguous; dW: dY^T, [O, B] compute, rows in sorted order
  const void* bias;                // [O] compute in the op's order, or null; y only
  void* output;                    // y [B, O] or dX [B, I], compute, in the op's order; dW [O, I], see masked_gemm_dw
  void* scratch;                   // of this thread, masked_gemm_scratch bytes
};

struct MaskedGemmPart {
  int64_t unit_begin, unit_end;    // within one panel
  int64_t tile_begin, tile_end;
};

// Lanes of one tile.
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_width, bool float64, int64_t* lanes)

// Bytes of scratch per thread for a reduction of `steps`.
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_scratch, bool float64, int64_t steps, int64_t* bytes)

// matrix [rows, columns] compute -> tiles [ceil(lanes of the matrix / width)][steps][width], zero beyond the end.
// by_rows: lanes are rows and steps are columns (y, dX); otherwise lanes are columns and steps are rows (dW).
// order: the columns' sorted order, or null. Writes the tiles [tile_begin, tile_end), the first of them at `tiles`.
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_tiles, bool float64, bool by_rows, const void* matrix, int64_t rows,
                           int64_t columns, const int32_t* order, void* tiles, int64_t tile_begin, int64_t tile_end)

AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_y, const MaskedGemm& arguments, const MaskedGemmPart& part)
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_dx, const MaskedGemm& arguments, const MaskedGemmPart& part)

// dX where the plan is sorted and storage is compute: `tiles` is dY [B, O] as it lies, units are the columns of one tile
// of `width` lanes and the part's tiles are groups of masked_gemm_rows rows.
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_dx_in_place, const MaskedGemm& arguments, const MaskedGemmPart& part)
constexpr int64_t masked_gemm_rows = 6;

// Whole rows of the nested plan's dW: computes [units, extent of the last] in compute type into output, whose rows are
// `output_stride` apart and begin with unit_begin. What lies behind a row's extent is left undefined. For the blocks
// plan: all tiles that are not empty.
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_dw, const MaskedGemm& arguments, int64_t unit_begin, int64_t unit_end,
                           void* output, int64_t output_stride)

}  // namespace ar_fast
