// Tiles of float32 by mma.sync m16n8k8: operands rounded to tf32, sums in float32. sm_80 and later.
#include "masked_linear_tiles.h"

namespace ar_fast::cuda {

cudaError_t launch_tf32_tiles(Product product, int tile, const MaskedLinear& m, cudaStream_t stream) {
  return tile == 128 ? launch_tiles<TileScheme<float, true, 128>>(product, m, stream)
                     : launch_tiles<TileScheme<float, true, 64>>(product, m, stream);
}

}  // namespace ar_fast::cuda
