// The launchers of tiles: which family and which size a product takes. And the family of exact multiply-adds: float32
// and float64.
#include <algorithm>

#include "masked_linear_tiles.h"

namespace ar_fast::cuda {

namespace {

template <typename Scheme>
cudaError_t launch_wide_tiles(Product product, int chunk, const MaskedLinear& m, void* scratch, cudaStream_t stream) {
  return product == Product::y ? launch_tiles<Scheme, Product::y>(m, stream, chunk, scratch)
                               : launch_tiles<Scheme, Product::grad_input>(m, stream, chunk, scratch);
}

}  // namespace

cudaError_t launch_exact_tiles(Product product, const MaskedLinearTiling& tiling, const MaskedLinear& m, void* scratch,
                               cudaStream_t stream) {
  if (m.storage == ScalarType::float64) return launch_tiles<TileScheme<double, false, 64>>(product, m, stream);
  if (tiling.columns == 64) return launch_tiles<TileScheme<float, false, 64>>(product, m, stream);
  if (product == Product::grad_weight) return launch_tiles<WideScheme<64>, Product::grad_weight>(m, stream);
  return tiling.rows == 32 ? launch_wide_tiles<WideScheme<32>>(product, tiling.chunk, m, scratch, stream)
                           : launch_wide_tiles<WideScheme<64>>(product, tiling.chunk, m, scratch, stream);
}

// Tiles of WideScheme where there are enough of them for the GPU, with sums split where that takes it: into chunks of
// which a third more than run at once are not empty, as half of those of a staircase are, so that short ones fill gaps.
void choose_wide_tiles(Product product, const MaskedLinear& m, int multiprocessors, MaskedLinearTiling& tiling) {
  constexpr int64_t least_sum = 256, least_chunk = 96;
  const int64_t rows = output_rows(product, m), columns = output_columns(product, m);
  const int tile_rows = product != Product::grad_weight && rows <= 32 ? 32 : 64;
  const int64_t tiles = static_cast<int64_t>(blocks_of(rows, tile_rows)) * blocks_of(columns, 128);
  if (product == Product::grad_weight) {
    if (tiles >= 2 * multiprocessors) tiling.rows = 64, tiling.columns = 128;
    return;
  }
  const int64_t sum = product == Product::y ? m.mask.in_features : m.mask.out_features;
  if (tiles * blocks_of(sum, least_sum) < multiprocessors) return;
  tiling.rows = tile_rows;
  tiling.columns = 128;
  const int64_t resident = multiprocessors * (tile_rows == 32 ? WideScheme<32>::blocks : WideScheme<64>::blocks);
  if (tiles >= resident) return;
  const int64_t chunks =
      std::min<int64_t>(std::max<int64_t>(2 * resident * 4 / 3 / tiles, 1), blocks_of(sum, least_chunk));
  if (chunks == 1) return;
  constexpr int64_t step = WideScheme<64>::steps;
  const int64_t chunk = (sum + chunks * step - 1) / (chunks * step) * step;
  tiling.chunk = static_cast<int>(chunk);
  const int64_t partial_sums = blocks_of(sum, chunk) * rows * blocks_of(columns, 128) * 128;
  tiling.scratch_bytes = partial_sums * static_cast<int64_t>(sizeof(float));
}

}  // namespace ar_fast::cuda

namespace ar_fast {

cudaError_t masked_linear_tiling_cuda(MaskedLinearProduct product, const MaskedLinear& m, MaskedLinearTiling& tiling) {
  using namespace cuda;
  Device device;
  const cudaError_t error = current_device(device);
  if (error != cudaSuccess) return error;
  const bool is_float32 = m.storage == ScalarType::float32, sm80 = device.capability >= 8;
  tiling = {64, 64, is_float32 ? m.tf32 && sm80 : m.storage != ScalarType::float64, 0, 0};
  if (is_float32 && !tiling.matrix) choose_wide_tiles(product, m, device.multiprocessors, tiling);
  const int64_t large = static_cast<int64_t>(blocks_of(output_rows(product, m), 128)) *
                        blocks_of(output_columns(product, m), 128);
  if (!tiling.matrix || !sm80 || large < device.multiprocessors) return cudaSuccess;
  return dispatch_storage(m.storage, [&](auto type) {
    const TileOperands<decltype(type)> operands = operands_of<decltype(type)>(product, m);
    if (operands.a.aligned && operands.b.aligned) tiling.rows = tiling.columns = 128;
    return cudaSuccess;
  });
}

cudaError_t masked_linear_tiles_cuda(MaskedLinearProduct product, const MaskedLinearTiling& tiling,
                                     const MaskedLinear& m, void* scratch, cudaStream_t stream) {
  if (!tiling.matrix) return cuda::launch_exact_tiles(product, tiling, m, scratch, stream);
  return m.storage == ScalarType::float32 ? cuda::launch_tf32_tiles(product, tiling.rows, m, stream)
                                          : cuda::launch_16bit_tiles(product, tiling.rows, m, stream);
}

}  // namespace ar_fast
