#include "masked_linear_plan.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/lt.h>

#include <algorithm>

namespace ar_fast {
namespace {

// A rectangle of fewer weights than this is packed whole instead of being split further: splitting costs calls.
constexpr int64_t leaf_area = 64 * 1024;
constexpr int64_t leaf_rows = 32;
constexpr int64_t panel_tiles = 4;

std::vector<int32_t> inverse(const char* op, const char* name, const int32_t* permutation, int64_t size) {
  std::vector<int32_t> places(size, -1);
  for (int64_t i = 0; i < size; ++i) {
    const int32_t index = permutation[i];
    TORCH_CHECK(index >= 0 && index < size && places[index] < 0, op, ": ", name, " must be a permutation of 0 ... ",
                size - 1, ", got ", index, " at position ", i);
    places[index] = static_cast<int32_t>(i);
  }
  return places;
}

}  // namespace

HostMask::HostMask(const char* op, const MaskTensors& mask, int64_t out_features, int64_t in_features)
    : tensors_(mask), plan_(tensors_.plan(out_features, in_features)) {
  if (!nested()) return;
  if (plan_.rows != nullptr) inverse(op, "rows", plan_.rows, out_features);
  if (plan_.columns != nullptr) rank_ = inverse(op, "columns", plan_.columns, in_features);
  // One pass without branches finds whether all values are valid; a second one finds the error to report.
  int32_t before = 0, wrong = 0;
  const int32_t most = static_cast<int32_t>(in_features);
  for (int64_t r = 0; r < out_features; ++r) {
    const int32_t here = static_cast<int32_t>(extent(r));
    wrong |= static_cast<int32_t>(here < before) | static_cast<int32_t>(here > most);
    before = here;
  }
  if (wrong == 0) return;
  before = 0;
  for (int64_t r = 0; r < out_features; ++r) {
    const int32_t here = static_cast<int32_t>(extent(r));
    TORCH_CHECK(here >= 0 && here <= most, op, ": extents must lie in 0 ... ", in_features, ", got ", here);
    TORCH_CHECK(here >= before, op, ": ",
                plan_.rows == nullptr ? "without rows, extents must ascend"
                                      : "rows must sort extents in ascending order",
                ", got ", before, " before ", here);
    before = here;
  }
}

std::vector<MaskedBlock> HostMask::blocks() const {
  std::vector<MaskedBlock> blocks;
  if (nested()) {
    staircase(0, plan_.out_features, 0, blocks);
  } else {
    tile_runs(blocks);
  }
  return blocks;
}

void HostMask::staircase(int64_t row_begin, int64_t row_end, int64_t column_begin,
                         std::vector<MaskedBlock>& blocks) const {
  if (row_begin == row_end) return;
  const int64_t column_end = extent(row_end - 1);
  if (column_end <= column_begin) return;
  int64_t first = row_begin, last = row_end - 1;  // the first row that sees column_begin
  while (first < last) {
    const int64_t middle = (first + last) / 2;
    if (extent(middle) > column_begin) {
      last = middle;
    } else {
      first = middle + 1;
    }
  }
  row_begin = first;
  const int64_t rows = row_end - row_begin;
  if (extent(row_begin) == column_end) {
    blocks.push_back({{row_begin, row_end, column_begin, column_end}, true});
    return;
  }
  if (rows < 2 * leaf_rows || rows * (column_end - column_begin) <= leaf_area) {
    blocks.push_back({{row_begin, row_end, column_begin, column_end}, false});
    return;
  }
  const int64_t middle = row_begin + rows / 2;
  const int64_t seen = extent(middle);
  blocks.push_back({{middle, row_end, column_begin, seen}, true});
  staircase(row_begin, middle, column_begin, blocks);
  staircase(middle, row_end, seen, blocks);
}

void HostMask::tile_runs(std::vector<MaskedBlock>& blocks) const {
  const int64_t tile_columns = (plan_.in_features + mask_tile_size - 1) / mask_tile_size;
  const int64_t tile_rows = (plan_.out_features + mask_tile_size - 1) / mask_tile_size;
  for (int64_t row = 0; row < tile_rows;) {
    const int32_t* tiles = plan_.tiles + row * tile_columns;
    int64_t height = 1;
    while (row + height < tile_rows && height < panel_tiles &&
           std::equal(tiles, tiles + tile_columns, tiles + height * tile_columns)) {
      ++height;
    }
    for (int64_t column = 0; column < tile_columns;) {
      const int32_t kind = tiles[column];
      int64_t end = column + 1;
      while (end < tile_columns && tiles[end] == kind) ++end;
      if (kind != 0) {
        blocks.push_back({{row * mask_tile_size, std::min((row + height) * mask_tile_size, plan_.out_features),
                           column * mask_tile_size, std::min(end * mask_tile_size, plan_.in_features)},
                          kind == 1});
      }
      column = end;
    }
    row += height;
  }
}

std::vector<int64_t> HostMask::split_rows(int64_t parts) const {
  const int64_t rows = plan_.out_features;
  std::vector<int64_t> bounds(parts + 1, rows);
  bounds[0] = 0;
  if (!nested() || rank() != nullptr) {
    for (int64_t part = 1; part < parts; ++part) bounds[part] = rows * part / parts;
    return bounds;
  }
  int64_t total = rows;
  for (int64_t r = 0; r < rows; ++r) total += plan_.extents[r];
  int64_t sum = 0, part = 1;
  for (int64_t r = 0; r < rows && part < parts; ++r) {
    sum += plan_.extents[r] + 1;
    while (part < parts && sum * parts >= total * part) bounds[part++] = r + 1;
  }
  return bounds;
}

std::vector<int64_t> HostMask::split_columns(int64_t parts) const {
  const int64_t columns = plan_.in_features;
  std::vector<int64_t> bounds(parts + 1, columns);
  bounds[0] = 0;
  if (!nested() || rank() != nullptr) {
    for (int64_t part = 1; part < parts; ++part) bounds[part] = columns * part / parts;
    return bounds;
  }
  // Row o takes work for every column before extents[o].
  std::vector<int64_t> stops(columns + 1, 0);
  int64_t total = columns;
  for (int64_t r = 0; r < plan_.out_features; ++r) {
    ++stops[plan_.extents[r]];
    total += plan_.extents[r];
  }
  int64_t sum = 0, part = 1, rows = plan_.out_features - stops[0];
  for (int64_t c = 0; c < columns && part < parts; ++c) {
    sum += rows + 1;
    rows -= stops[c + 1];
    while (part < parts && sum * parts >= total * part) bounds[part++] = c + 1;
  }
  return bounds;
}

std::vector<int32_t> HostMask::starts() const {
  std::vector<int32_t> starts(plan_.in_features + 1, 0);
  for (int64_t r = 0; r < plan_.out_features; ++r) ++starts[plan_.extents[r]];
  for (int64_t c = 1; c <= plan_.in_features; ++c) starts[c] += starts[c - 1];
  return starts;
}

at::Tensor HostMask::to_dense() const {
  if (!nested()) return tensors_.dense;
  const auto options = tensors_.extents.options();
  const at::Tensor places =
      rank() == nullptr ? at::arange(plan_.in_features, options)
                        : at::from_blob(const_cast<int32_t*>(rank()), {plan_.in_features}, options).clone();
  return at::lt(places.unsqueeze(0), tensors_.extents.unsqueeze(1));
}

}  // namespace ar_fast
