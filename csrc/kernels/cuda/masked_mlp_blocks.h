// What the two kernels of masked_mlp_sample share. Large networks are drawn in blocks of positions, which begin at
// multiples of their size. Of the units of a block, masked_mlp_sums adds up what they get from before the block, on the
// whole GPU: products of many units and rows, cut into chunks of the inputs. masked_mlp_sample then adds the chunks in
// their order, and goes through the positions of the block, whose units read only what lies within it.
#pragma once

#include "masked_mlp_cuda.h"
#include "runtime.h"

namespace ar_fast::cuda {

// Of the inputs of a term that are known before a block, in one partial sum at least.
constexpr int kLeastChunk = 256;
constexpr int kMostTerms = (masked_mlp_max_layers + 1) * masked_mlp_max_terms;

// The positions of a launch, begin ... end - 1, are in the block [first, last) of positions.
struct MlpBlock {
  int first, last, begin, end;
};

// The partial sums of one term in a block. They depend on the network and the block only: on neither begin and end nor
// the batch.
struct TermSums {
  int first_unit, units;           // of the block
  int begin, end;                  // those that are computed at the positions begin ... end - 1
  int known;                       // inputs from before the block
  int chunks, chunk;               // so many partial sums, of so many inputs each
  int64_t offset;                  // of chunk 0 of first_unit in a row of partial sums

  __device__ __forceinline__ int64_t at(int index, int unit) const {
    return offset + static_cast<int64_t>(index) * units + (unit - first_unit);
  }
};

// Partial sums of a row: each term has as many as its layer has units.
inline int64_t partial_sums(const MaskedMlpSample& sample) {
  int64_t count = 0;
  for (int64_t l = 0; l <= sample.hidden_layers; ++l) count += sample.layers[l].terms * sample.layers[l].units;
  return count;
}

__device__ inline TermSums term_sums(const MaskedMlpSample& sample, int layer, int term, const MlpBlock& block,
                                     int step) {
  TermSums sums;
  sums.offset = 0;
  for (int l = 0; l < layer; ++l) sums.offset += sample.layers[l].terms * sample.layers[l].units;
  const int64_t layer_units = sample.layers[layer].units;
  sums.offset += term * layer_units;
  sums.first_unit = static_cast<int>(masked_mlp_units(sample, layer, block.first).begin);
  sums.units = static_cast<int>(masked_mlp_units(sample, layer, block.last - 1).end) - sums.first_unit;
  sums.begin = static_cast<int>(masked_mlp_units(sample, layer, block.begin).begin);
  sums.end = static_cast<int>(masked_mlp_units(sample, layer, block.end - 1).end);
  sums.known = static_cast<int>(masked_mlp_known(sample, sample.layers[layer].term[term].source, block.first));
  sums.chunks = sums.chunk = 0;
  if (sums.units > 0 && sums.known > 0) {
    const int most = static_cast<int>(layer_units / sums.units);  // a row has room for
    const int chunks = min((sums.known + kLeastChunk - 1) / kLeastChunk, most);
    sums.chunk = ((sums.known + chunks - 1) / chunks + step - 1) / step * step;
    sums.chunks = (sums.known + sums.chunk - 1) / sums.chunk;
  }
  return sums;
}

// Of all terms of the program, in its order, by the threads of a block; the caller's barrier follows. Returns their
// number.
__device__ __forceinline__ int all_term_sums(const MaskedMlpSample& sample, const MlpBlock& block, int step,
                                             TermSums* sums) {
  int terms = 0;
  for (int l = 0; l <= sample.hidden_layers; ++l) {
    for (int t = 0; t < sample.layers[l].terms; ++t, ++terms) {
      if (terms % static_cast<int>(blockDim.x) == static_cast<int>(threadIdx.x)) {
        sums[terms] = term_sums(sample, l, t, block, step);
      }
    }
  }
  return terms;
}

// A step of the sum in masked_mlp_sums.
constexpr int kMlpStep = 16;

// partial: [B][partial_sums].
cudaError_t launch_masked_mlp_sums(const MaskedMlpSample& sample, const MlpBlock& block, void* partial,
                                   cudaStream_t stream);

}  // namespace ar_fast::cuda
