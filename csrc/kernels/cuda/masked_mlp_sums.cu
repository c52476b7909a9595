// What the units of a block of positions get from before it (masked_mlp_blocks.h): tiles of 64 rows and 64 units, one
// chunk of the inputs each, by the tiles of masked_linear. Only the device knows how many units a block has, so the
// grid is as large as the GPU, and its blocks take the tiles in turn. An output is the sum over its chunk in ascending
// order, wherever it lies in a tile.
#include "masked_linear_sums.h"
#include "masked_mlp_blocks.h"

namespace ar_fast::cuda {
namespace {

template <typename S>
constexpr int kBlocksPerMultiprocessor = sizeof(S) == 8 ? 1 : 2;

template <typename T>
using SumsScheme = TileScheme<T, false, 64>;

template <typename T>
constexpr size_t kSumsShared = size_t{4} * Tile<SumsScheme<T>, true, true>::size * sizeof(T);

// A tile of a weight of 16 bits, converted.
template <typename T, typename S>
__device__ __forceinline__ void load_converted(T* shared, const Operand<S>& weight, const DeviceMask& mask, int unit,
                                               int input, bool masked) {
  using Scheme = SumsScheme<T>;
  constexpr int size = Vector<S>::size, across = Scheme::steps / size;
  for (int i = static_cast<int>(threadIdx.x); i < Scheme::columns * across; i += Scheme::threads) {
    const int r = i / across, c = i % across * size;
    const Vector<S> stored = masked ? weight.template fetch<true>(mask, unit + r, input + c)
                                    : weight.template fetch<false>(mask, unit + r, input + c);
#pragma unroll
    for (int v = 0; v < size; v += Vector<T>::size) {
      Vector<T> converted;
#pragma unroll
      for (int j = 0; j < Vector<T>::size; ++j) converted.values[j] = to_compute(stored.values[v + j]);
      store_vector(shared + Tile<Scheme, false, true>::place(r, c + v), converted);
    }
  }
}

// One tile: rows from `row`, the sums' units from `unit`, the inputs of a chunk.
template <typename S, typename T>
__device__ __forceinline__ void sum_tile(const MaskedMlpSample& sample, const MaskedMlpTerm& term, const TermSums& sums,
                                         int row, int unit, int chunk, T* partial, int64_t stride, T* left) {
  using Scheme = SumsScheme<T>;
  using Shared = Tile<Scheme, true, true>;  // both operands' are the same
  T* const right = left + 2 * Shared::size;
  const int begin = chunk * sums.chunk, end = min(begin + sums.chunk, sums.known);
  const int64_t inputs = masked_mlp_width(sample, term.source);
  const Operand<T> values(static_cast<const T*>(sample.state) + masked_mlp_offset(sample, term.source), sample.features,
                          sample.draws.batch, end, nullptr, nullptr);
  const Operand<S> weight(term.weight, inputs, sums.end, end, nullptr, nullptr);
  const DeviceMask mask(MaskPlan{sums.end, end, term.extents, nullptr, nullptr, nullptr, nullptr});
  const int full = term.extents[unit];  // extents ascend: all units of the tile see so many inputs
  const auto load = [&](int input) {
    const int place = (input - begin) / Scheme::steps % 2 * Shared::size;
    const bool masked = input + Scheme::steps > full;
    Shared::load(left + place, values, mask, row, input, false);
    if constexpr (std::is_same_v<S, T>) {
      Shared::load(right + place, weight, mask, unit, input, masked);
    } else {
      load_converted(right + place, weight, mask, unit, input, masked);
    }
    copy_async_commit();
  };
  Sums<Scheme, true, true> sum;
  load(begin);
  for (int input = begin; input < end; input += Scheme::steps) {
    copy_async_wait<0>();
    // Past this barrier the step to be read is there for all threads, and nobody reads the one to be overwritten.
    __syncthreads();
    if (input + Scheme::steps < end) load(input + Scheme::steps);
    const int place = (input - begin) / Scheme::steps % 2 * Shared::size;
    sum.add(left + place, right + place);
  }
  sum.for_each([&](int r, int c, const T(&own)[1]) {
    r += row;
    c += unit;
    if (r >= values.rows || c >= sums.end) return;
    T value = own[0];
    if (value != value && term.extents[c] < end) {
      // A masked weight is a zero, whose product with what is not finite is NaN: without those weights once more.
      value = 0;
#pragma unroll 1
      for (int k = begin; k < min(end, term.extents[c]); ++k) {
        value = fma(values.row_data(r)[k], to_compute(weight.row_data(c)[k]), value);
      }
    }
    partial[r * stride + sums.at(chunk, c)] = value;
  });
  __syncthreads();  // before the next tile is loaded
}

template <typename S>
__global__ void __launch_bounds__(SumsScheme<Compute<S>>::threads, kBlocksPerMultiprocessor<S>)
    masked_mlp_sums_kernel(const MaskedMlpSample sample, MlpBlock block, Compute<S>* partial, int64_t stride) {
  using T = Compute<S>;
  constexpr int tile = SumsScheme<T>::rows;
  AR_FAST_SHARED(TermSums, terms, [kMostTerms]);
  AR_FAST_DYNAMIC_SHARED(T, left);
  all_term_sums(sample, block, kMlpStep, terms);
  __syncthreads();
  const int row_tiles = (static_cast<int>(sample.draws.batch) + tile - 1) / tile;
  int64_t next = blockIdx.x, index = 0;  // of the tiles of all terms
  int number = 0;
  for (int l = 0; l <= sample.hidden_layers; ++l) {
    for (int t = 0; t < sample.layers[l].terms; ++t, ++number) {
      const TermSums sums = terms[number];
      const int unit_tiles = (sums.end - sums.begin + tile - 1) / tile;
      const int64_t of_chunk = static_cast<int64_t>(row_tiles) * unit_tiles, count = of_chunk * sums.chunks;
      for (; next < index + count; next += gridDim.x) {
        const int chunk = static_cast<int>((next - index) / of_chunk);
        const int of_units = static_cast<int>((next - index) % of_chunk);
        sum_tile<S>(sample, sample.layers[l].term[t], sums, of_units / unit_tiles * tile,
                    sums.begin + of_units % unit_tiles * tile, chunk, partial, stride, left);
      }
      index += count;
    }
  }
}

}  // namespace

cudaError_t launch_masked_mlp_sums(const MaskedMlpSample& sample, const MlpBlock& block, void* partial,
                                   cudaStream_t stream) {
  Device device;
  const cudaError_t error = current_device(device);
  if (error != cudaSuccess) return error;
  return dispatch_storage(sample.storage, [&](auto storage) {
    using S = decltype(storage);
    const auto blocks = static_cast<unsigned>(device.multiprocessors * kBlocksPerMultiprocessor<S>);
    using T = Compute<S>;
    static_assert(SumsScheme<T>::steps == kMlpStep, "chunks are made of whole steps");
    return launch({"masked_mlp_sums", blocks, SumsScheme<T>::threads, kSumsShared<T>, stream},
                  masked_mlp_sums_kernel<S>, sample, block, static_cast<T*>(partial), partial_sums(sample));
  });
}

}  // namespace ar_fast::cuda
