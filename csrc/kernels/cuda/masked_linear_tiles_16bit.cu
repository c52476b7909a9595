// Tiles of bfloat16 and float16 by mma.sync m16n8k16, sums in float32. Tiles of 128 on sm_80 and later.
#include "masked_linear_tiles.h"

namespace ar_fast::cuda {
namespace {

template <typename S>
cudaError_t launch_tiles_of(Product product, int tile, const MaskedLinear& m, cudaStream_t stream) {
  return tile == 128 ? launch_tiles<TileScheme<S, true, 128>>(product, m, stream)
                     : launch_tiles<TileScheme<S, true, 64>>(product, m, stream);
}

}  // namespace

cudaError_t launch_16bit_tiles(Product product, int tile, const MaskedLinear& m, cudaStream_t stream) {
  return m.storage == ScalarType::bfloat16 ? launch_tiles_of<bfloat16>(product, tile, m, stream)
                                           : launch_tiles_of<float16>(product, tile, m, stream);
}

}  // namespace ar_fast::cuda
