// The host's view of a mask: checked values, and the rectangles that make up the unmasked part.
#pragma once

#include <vector>

#include "../../kernels/cpu/masked_linear_cpu.h"
#include "../masked_linear.h"

namespace ar_fast {

struct MaskedBlock {
  MaskedRectangle at;              // in sorted rows and columns
  bool full;                       // it has no masked weight
};

class HostMask {
 public:
  // Raises if values are out of range, or rows or columns are not a permutation or do not sort the extents.
  HostMask(const char* op, const MaskTensors& mask, int64_t out_features, int64_t in_features);

  const MaskPlan& plan() const { return plan_; }
  bool nested() const { return plan_.extents != nullptr; }
  bool sorted() const { return plan_.rows == nullptr && plan_.columns == nullptr; }
  const int32_t* rank() const { return rank_.empty() ? nullptr : rank_.data(); }
  const at::Tensor& rows() const { return tensors_.rows; }
  const at::Tensor& columns() const { return tensors_.columns; }
  // Extent of the sorted row; ascending.
  int64_t extent(int64_t sorted_row) const {
    return plan_.extents[plan_.rows == nullptr ? sorted_row : plan_.rows[sorted_row]];
  }

  // Rectangles that cover every unmasked weight once; together they are little larger than the unmasked part.
  std::vector<MaskedBlock> blocks() const;

  // Boundaries of `parts` ranges of rows (of columns) with about the same work, in the weight's own order.
  std::vector<int64_t> split_rows(int64_t parts) const;
  std::vector<int64_t> split_columns(int64_t parts) const;

  // For each sorted column, how many sorted rows do not see it.
  std::vector<int32_t> starts() const;

  // The mask as a bool tensor (O, I).
  at::Tensor to_dense() const;

 private:
  void staircase(int64_t row_begin, int64_t row_end, int64_t column_begin, std::vector<MaskedBlock>& blocks) const;
  void tile_runs(std::vector<MaskedBlock>& blocks) const;

  ContiguousMask tensors_;
  MaskPlan plan_;
  std::vector<int32_t> rank_;
};

}  // namespace ar_fast
