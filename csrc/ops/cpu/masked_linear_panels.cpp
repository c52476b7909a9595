// masked_linear through torch's GEMM. Rectangles without masked weights are views of the weight. The others, and all
// rectangles of a weight whose rows or columns are not sorted, are packed a bounded piece at a time.
#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/index_copy.h>
#include <ATen/ops/mm_cpu_dispatch.h>

#include "masked_linear_paths.h"

namespace ar_fast {
namespace {

constexpr int64_t piece_rows = 256;
constexpr int64_t piece_columns = 2048;

at::Tensor part(const at::Tensor& matrix, int64_t row_begin, int64_t row_end, int64_t column_begin,
                int64_t column_end) {
  const int64_t stride = matrix.stride(0);
  return at::cpu::as_strided(matrix, {row_end - row_begin, column_end - column_begin}, {stride, 1},
                             matrix.storage_offset() + row_begin * stride + column_begin);
}

at::Tensor columns_of(const at::Tensor& matrix, int64_t begin, int64_t end) {
  return part(matrix, 0, matrix.size(0), begin, end);
}

at::Tensor transposed(const at::Tensor& matrix) {
  return at::cpu::as_strided(matrix, {matrix.size(1), matrix.size(0)}, {matrix.stride(1), matrix.stride(0)},
                             matrix.storage_offset());
}

at::Tensor unsort_features(const at::Tensor& matrix, const at::Tensor& order) {
  if (!order.defined()) return matrix;
  return empty(matrix.sizes(), matrix.scalar_type()).index_copy_(1, order.to(at::kLong), matrix);
}

// Calls body(rectangle, its weights in the compute type) for rectangles that cover the unmasked part once.
template <typename Body>
void for_each_piece(const HostMask& mask, const at::Tensor& weight, const std::vector<MaskedBlock>& blocks,
                    const Body& body) {
  const ScalarType storage = storage_type(weight.scalar_type());
  const at::ScalarType compute = compute_type(weight.scalar_type());
  const bool in_place = mask.sorted() && weight.scalar_type() == compute;
  at::Tensor buffer;
  for (const MaskedBlock& block : blocks) {
    const MaskedRectangle& at = block.at;
    if (block.full && in_place) {
      body(at, part(weight, at.row_begin, at.row_end, at.column_begin, at.column_end));
      continue;
    }
    for (int64_t row = at.row_begin; row < at.row_end; row += piece_rows) {
      for (int64_t column = at.column_begin; column < at.column_end; column += piece_columns) {
        const MaskedRectangle piece{row, std::min(row + piece_rows, at.row_end), column,
                                    std::min(column + piece_columns, at.column_end)};
        const int64_t height = piece.row_end - piece.row_begin, width = piece.column_end - piece.column_begin;
        if (!buffer.defined() || buffer.numel() < height * width) buffer = empty({height * width}, compute);
        char* packed = static_cast<char*>(buffer.mutable_data_ptr());
        const int64_t row_bytes = width * static_cast<int64_t>(buffer.element_size());
        parallel(height * width > parallel_work, height, [&](int64_t begin, int64_t end) {
          AR_FAST_CPU_KERNEL(masked_pack)
          (storage, mask.plan(), weight.const_data_ptr(),
           {piece.row_begin + begin, piece.row_begin + end, piece.column_begin, piece.column_end},
           packed + begin * row_bytes);
        });
        body(piece, at::cpu::as_strided(buffer, {height, width}, {width, 1}, 0));
      }
    }
  }
}

// Row panels of dW through a bounded buffer, for permuted plans and for storage that is not the compute type.
void grad_weight_panels(const HostMask& mask, const at::Tensor& dy, const at::Tensor& x, at::Tensor& dw) {
  const MaskPlan& plan = mask.plan();
  const ScalarType storage = storage_type(dw.scalar_type());
  std::vector<MaskedBlock> panels;
  if (mask.nested()) {
    for (int64_t row = 0; row < plan.out_features;) {
      int64_t end = std::min(row + piece_rows, plan.out_features);
      while (end - row > 16 && (end - row) * mask.extent(end - 1) > piece_rows * piece_columns) end -= 16;
      panels.push_back({{row, end, 0, mask.extent(end - 1)}, false});
      row = end;
    }
  } else {
    dw.zero_();
    panels = mask.blocks();
  }
  at::Tensor buffer;
  for (const MaskedBlock& panel : panels) {
    const MaskedRectangle& at = panel.at;
    const int64_t height = at.row_end - at.row_begin, width = at.column_end - at.column_begin;
    if (!buffer.defined() || buffer.numel() < height * width) buffer = empty({height * width}, x.scalar_type());
    at::Tensor product = at::cpu::as_strided(buffer, {height, width}, {width, 1}, 0);
    at::cpu::mm_out(product, transposed(columns_of(dy, at.row_begin, at.row_end)),
                    columns_of(x, at.column_begin, at.column_end));
    const char* packed = static_cast<const char*>(buffer.const_data_ptr());
    const int64_t row_bytes = width * static_cast<int64_t>(buffer.element_size());
    parallel(height * plan.in_features > parallel_work, height, [&](int64_t begin, int64_t end) {
      AR_FAST_CPU_KERNEL(masked_unpack)
      (storage, plan, mask.rank(), packed + begin * row_bytes,
       {at.row_begin + begin, at.row_begin + end, at.column_begin, at.column_end}, dw.mutable_data_ptr());
    });
  }
}

}  // namespace

at::Tensor panels_forward(const HostMask& mask, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const int64_t out_features = mask.plan().out_features;
  at::Tensor y = empty({x.size(0), out_features}, x.scalar_type());
  const at::Tensor b = bias.defined() && mask.rows().defined() ? at::index_select(bias, 0, mask.rows()) : bias;
  const at::Tensor sorted = sort_features(x, mask.columns());
  b.defined() ? y.copy_(b) : y.zero_();
  for_each_piece(mask, weight, mask.blocks(), [&](const MaskedRectangle& at, const at::Tensor& weights) {
    at::Tensor outputs = columns_of(y, at.row_begin, at.row_end);
    at::cpu::addmm_(outputs, columns_of(sorted, at.column_begin, at.column_end), transposed(weights));
  });
  return unsort_features(y, mask.rows());
}

at::Tensor panels_grad_input(const HostMask& mask, const at::Tensor& dy, const at::Tensor& weight) {
  at::Tensor dx = empty({dy.size(0), mask.plan().in_features}, dy.scalar_type()).zero_();
  const at::Tensor sorted = sort_features(dy, mask.rows());
  for_each_piece(mask, weight, mask.blocks(), [&](const MaskedRectangle& at, const at::Tensor& weights) {
    at::Tensor inputs = columns_of(dx, at.column_begin, at.column_end);
    at::cpu::addmm_(inputs, columns_of(sorted, at.row_begin, at.row_end), weights);
  });
  return unsort_features(dx, mask.columns());
}

at::Tensor panels_grad_weight(const HostMask& mask, const at::Tensor& dy, const at::Tensor& x,
                              at::ScalarType storage) {
  const int64_t out_features = mask.plan().out_features, in_features = mask.plan().in_features;
  at::Tensor dw = empty({out_features, in_features}, storage);
  if (!mask.sorted() || x.scalar_type() != storage) {
    grad_weight_panels(mask, sort_features(dy, mask.rows()), sort_features(x, mask.columns()), dw);
    return dw;
  }
  for (const MaskedBlock& block : mask.blocks()) {
    const MaskedRectangle& at = block.at;
    at::Tensor product = part(dw, at.row_begin, at.row_end, at.column_begin, at.column_end);
    at::cpu::mm_out(product, transposed(columns_of(dy, at.row_begin, at.row_end)),
                    columns_of(x, at.column_begin, at.column_end));
  }
  parallel(out_features * in_features > parallel_work, out_features, [&](int64_t begin, int64_t end) {
    AR_FAST_CPU_KERNEL(masked_clear)(storage_type(storage), mask.plan(), begin, end, dw.mutable_data_ptr());
  });
  return dw;
}

}  // namespace ar_fast
