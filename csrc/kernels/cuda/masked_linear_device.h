// What the masked linear kernels share: the mask, and operands read through it in sorted order.
#pragma once

#include "masked_linear_cuda.h"
#include "runtime.h"

namespace ar_fast::cuda {

// Rows and columns are in sorted order: sorted row r is row rows[r] of the weight, sorted column c is column
// columns[c].
struct DeviceMask {
  int out_features, in_features;
  const int32_t *extents, *rows, *columns, *tiles;
  const uint8_t* dense;

  AR_FAST_HOST_DEVICE explicit DeviceMask(const MaskPlan& plan)
      : out_features(static_cast<int>(plan.out_features)), in_features(static_cast<int>(plan.in_features)),
        extents(plan.extents), rows(plan.rows), columns(plan.columns), tiles(plan.tiles), dense(plan.dense) {}

  __device__ __forceinline__ int row(int r) const { return rows == nullptr ? r : rows[r]; }
  __device__ __forceinline__ int column(int c) const { return columns == nullptr ? c : columns[c]; }
  // How many of the sorted columns the sorted row sees; the nested plan only.
  __device__ __forceinline__ int extent(int r) const { return extents[row(r)]; }
  __device__ __forceinline__ bool allows(int r, int c) const {
    return extents != nullptr ? c < extent(r) : dense[static_cast<int64_t>(r) * in_features + c] != 0;
  }
  __device__ __forceinline__ int tile_kind(int r, int c) const {
    const int tile_columns = (in_features + static_cast<int>(mask_tile_size) - 1) / static_cast<int>(mask_tile_size);
    return tiles[static_cast<int64_t>(r / mask_tile_size) * tile_columns + c / mask_tile_size];
  }
  // Whether the tile that holds (r, c) has anything to multiply; the nested plan says so by its bounds.
  __device__ __forceinline__ bool tile_used(int r, int c) const { return tiles == nullptr || tile_kind(r, c) != 0; }
  // Of all the tiles that row_count rows from r and column_count columns from c touch: empty (0), full (1) or mixed
  // (2); the blocks plan only.
  __device__ __forceinline__ int tiles_kind(int r, int c, int row_count, int column_count) const {
    constexpr int size = static_cast<int>(mask_tile_size);
    const int row_end = min(r + row_count, out_features), column_end = min(c + column_count, in_features);
    const int first = tile_kind(r, c);
    for (int i = r / size * size; i < row_end; i += size) {
      for (int j = c / size * size; j < column_end; j += size) {
        if (tile_kind(i, j) != first) return 2;
      }
    }
    return first;
  }
  // Columns before this bound are all that the sorted rows up to `last` see.
  __device__ __forceinline__ int columns_seen(int last) const {
    return extents != nullptr ? extent(last) : in_features;
  }
  // Rows before this one do not see the sorted column. Every thread of a warp takes part: a search by 32 at a time.
  __device__ __forceinline__ int first_row(int c) const {
    if (extents == nullptr) return 0;
    int low = 0, high = out_features;
    while (low < high) {
      const int width = high - low;
      const int probed = low + width * lane_id() / kWarpSize;
      const uint32_t seeing = __ballot_sync(kFullMask, extent(probed) > c);
      const int before = seeing == 0 ? kWarpSize : __ffs(static_cast<int>(seeing)) - 1;
      if (before < kWarpSize) high = low + width * before / kWarpSize;
      if (before > 0) low += width * (before - 1) / kWarpSize + 1;
    }
    return low;
  }
};

// A row-major matrix in sorted order.
template <typename S>
struct Operand {
  const S* data;
  int64_t stride;
  int rows, columns;
  const int32_t *row_map, *column_map;
  bool aligned;                    // 128-bit loads fit

  AR_FAST_HOST_DEVICE Operand(const void* pointer, int64_t row_stride, int64_t row_count, int64_t column_count,
                              const int32_t* rows_by_place, const int32_t* columns_by_place)
      : data(static_cast<const S*>(pointer)), stride(row_stride), rows(static_cast<int>(row_count)),
        columns(static_cast<int>(column_count)), row_map(rows_by_place), column_map(columns_by_place),
        aligned(columns_by_place == nullptr && vectors_fit(data, row_stride)) {}

  __device__ __forceinline__ const S* row_data(int r) const {
    return data + (row_map == nullptr ? r : row_map[r]) * stride;
  }

  // Whether the vector at (r, c) can be copied as it is.
  template <bool masked>
  __device__ __forceinline__ bool plain(const DeviceMask& mask, int r, int c) const {
    if (!aligned || r >= rows || c + Vector<S>::size > columns) return false;
    if constexpr (masked) return mask.extents != nullptr && c + Vector<S>::size <= mask.extent(r);
    return true;
  }

  // The vector at (r, c): zero where masked and beyond the matrix. Masked elements are not read.
  template <bool masked>
  __device__ __forceinline__ Vector<S> fetch(const DeviceMask& mask, int r, int c) const {
    if (plain<masked>(mask, r, c)) return load_vector(row_data(r) + c);
    Vector<S> result{};
    if (r >= rows) return result;
    const S* source = row_data(r);
#pragma unroll
    for (int i = 0; i < Vector<S>::size; ++i) {
      if (c + i >= columns) break;
      if (masked && !mask.allows(r, c + i)) continue;
      result.values[i] = source[column_map == nullptr ? c + i : column_map[c + i]];
    }
    return result;
  }
};

// That a grid can have; the tests lower it.
#if defined(AR_FAST_EMULATE_CUDA)
inline int64_t kMostBlocksInY = 65535;
#else
constexpr int64_t kMostBlocksInY = 65535;
#endif

inline unsigned blocks_of(int64_t count, int64_t size) { return static_cast<unsigned>((count + size - 1) / size); }

}  // namespace ar_fast::cuda
