// Matrix products that stop at the mask's staircase, for the CPU. One small kernel computes y, dX and dW: it multiplies
// six units, whose weights are broadcast, by a tile of lanes in registers. y can be computed in two ways: with output
// features as units and rows of the batch as lanes, which transposes the batch and the result; or with rows as units
// and features as lanes, which transposes the weight. dX uses the second way, which needs no transposed weight; dW has
// features as both units and lanes.
//
// Features are in sorted order; each thread takes panels of units and ranges of tiles. Within one of the two ways, a
// row of the batch gives the same bits whatever the batch size, the panels and the threads are.
#pragma once

#include <atomic>

#include "../masked_linear.h"
#include "dispatch.h"

namespace ar_fast {

constexpr int64_t masked_panel = mask_tile_size;

struct MaskedGemm {
  ScalarType storage;              // of the weight
  MaskPlan plan;
  const int32_t* starts;           // [I] number of sorted rows that do not see the sorted column; nested dX only
  int64_t batch;                   // B
  const void* tiles;               // see masked_gemm_tiles; from tile_begin of the part (y), all (dW). With features as
                                   // lanes: x [B, I] or dY [B, O], compute, contiguous
  const void* weight;              // [O, I] storage, contiguous; dW: dY^T, [O, B] compute
  bool unpacked;                   // y: nothing is copied, tiles are in the op's order; the plan is nested, storage is
                                   // compute. dX: the mask is a staircase without sorting, and storage is compute
  const void* bias;                // [O] compute in the op's order, or null; y only
  Activation activation;        // y only
  void* output;                    // y [B, O] or dX [B, I], compute, in the op's order; dW [O, I], see masked_gemm_dw
  void* scratch;                   // of this thread, masked_gemm_scratch bytes
  bool sorted;                     // features as lanes: those of `tiles` are in sorted order, not in the op's order
  std::atomic<bool>* undefined;    // set where a result of y or dX may be NaN; not null
};

struct MaskedGemmPart {
  int64_t unit_begin, unit_end;    // within one panel
  int64_t tile_begin, tile_end;
};

// The number of lanes of one tile.
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_width, bool float64, int64_t* lanes)

// Bytes of scratch per thread for a reduction of `steps`.
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_scratch, bool float64, int64_t steps, int64_t* bytes)

// matrix [rows, columns] compute -> tiles [ceil(lanes of the matrix / width)][steps][width], zero beyond the end.
// by_rows: lanes are rows and steps are columns (y); otherwise lanes are columns and steps are rows (dW).
// order: the columns' sorted order, or null. Writes the tiles [tile_begin, tile_end), the first of them to `tiles`.
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_tiles, bool float64, bool by_rows, const void* matrix, int64_t rows,
                           int64_t columns, const int32_t* order, void* tiles, int64_t tile_begin, int64_t tile_end)

// matrix [rows, columns] compute -> the rows [begin, end) of its transpose [columns, rows].
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_transpose, bool float64, const void* matrix, int64_t rows, int64_t columns,
                           int64_t begin, int64_t end, void* transposed)

AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_y, const MaskedGemm& arguments, const MaskedGemmPart& part)

// With features as lanes: units are sorted features of the result and become the lanes of tiles of `width`, beginning
// with the first unit; the part's tiles are groups of masked_gemm_rows rows of the batch. The scratch is for a
// reduction of `steps` and this many tiles.
constexpr int64_t masked_gemm_rows = 6;
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_lanes_scratch, bool float64, int64_t steps, int64_t tiles, int64_t* bytes)
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_y_lanes, const MaskedGemm& arguments, const MaskedGemmPart& part)
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_dx_lanes, const MaskedGemm& arguments, const MaskedGemmPart& part)

// Whole rows of dW in the nested plan: computes [units, extent of the last] in compute type into output, whose rows are
// `output_stride` apart and begin with unit_begin. The part of a row beyond its extent stays undefined. In the blocks
// plan: all tiles that are not empty.
AR_FAST_DECLARE_CPU_KERNEL(masked_gemm_dw, const MaskedGemm& arguments, int64_t unit_begin, int64_t unit_end,
                           void* output, int64_t output_stride)

}  // namespace ar_fast
