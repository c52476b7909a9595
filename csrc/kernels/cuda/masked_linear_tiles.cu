// The launchers of tiles: which family and which size a product takes. And the family of exact multiply-adds: float32
// and float64.
#include "masked_linear_tiles.h"

namespace ar_fast::cuda {

cudaError_t launch_exact_tiles(Product product, const MaskedLinear& m, cudaStream_t stream) {
  return m.storage == ScalarType::float64 ? launch_tiles<TileScheme<double, false, 64>>(product, m, stream)
                                          : launch_tiles<TileScheme<float, false, 64>>(product, m, stream);
}

}  // namespace ar_fast::cuda

namespace ar_fast {

cudaError_t masked_linear_tiling_cuda(MaskedLinearProduct product, const MaskedLinear& m, MaskedLinearTiling& tiling) {
  using namespace cuda;
  Device device;
  const cudaError_t error = current_device(device);
  if (error != cudaSuccess) return error;
  const bool is_float32 = m.storage == ScalarType::float32, sm80 = device.capability >= 8;
  tiling = {64, is_float32 ? m.tf32 && sm80 : m.storage != ScalarType::float64};
  const int64_t large = static_cast<int64_t>(blocks_of(output_rows(product, m), 128)) *
                        blocks_of(output_columns(product, m), 128);
  if (!tiling.matrix || !sm80 || large < device.multiprocessors) return cudaSuccess;
  return dispatch_storage(m.storage, [&](auto type) {
    const TileOperands<decltype(type)> operands = operands_of<decltype(type)>(product, m);
    if (operands.a.aligned && operands.b.aligned) tiling.tile = 128;
    return cudaSuccess;
  });
}

cudaError_t masked_linear_tiles_cuda(MaskedLinearProduct product, const MaskedLinear& m, cudaStream_t stream) {
  MaskedLinearTiling tiling;
  const cudaError_t error = masked_linear_tiling_cuda(product, m, tiling);
  if (error != cudaSuccess) return error;
  if (!tiling.matrix) return cuda::launch_exact_tiles(product, m, stream);
  return m.storage == ScalarType::float32 ? cuda::launch_tf32_tiles(product, tiling.tile, m, stream)
                                          : cuda::launch_16bit_tiles(product, tiling.tile, m, stream);
}

}  // namespace ar_fast
