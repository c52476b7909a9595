// The states before each tile of positions: a_p = in_bias + sum of x_i in_weight[i] over the positions before p.
//
// nade_sums adds up every tile by itself, all tiles at the same time: a warp takes a tile, 8 rows of the batch (16 in
// float32, where there are many tiles) and a strip of hidden units, whose lanes hold one 128-bit vector of a weight row
// each. There are no activations: a multiply and an add per (row, position, unit), and in_weight is read from L2 once
// per 8 or 16 rows: B D H / 8 * 4 bytes. For 784 x 500 x 128 that is 25 MB, about 5 us. Eight weight rows are under way
// at once. nade_running_sums then adds the tiles' sums one after another: a thread per (row, unit), 16 sums under way
// at once.
//
// The order of the additions depends on the tiles alone: neither on the batch nor on where a segment of tiles starts.
#include "nade_device.h"

namespace ar_fast::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kFewRows = 8, kManyRows = 16;  // of a warp, which reads the weights once for all of them
constexpr int kStep = 32;               // positions whose inputs are in shared memory: one a lane
constexpr int kAhead = 8;               // weight rows under way
constexpr int kThreads = kWarps * kWarpSize;

// What a lane owns of a weight row: neighbours if rows can be read 128 bits at a time, else every 32nd unit.
template <typename S, bool aligned>
struct Units {
  static constexpr int size = aligned ? Vector<S>::size : 16 / static_cast<int>(sizeof(Compute<S>));
  struct Scalars {
    S values[size];
  };
  using Loaded = std::conditional_t<aligned, Vector<S>, Scalars>;
  int first, hidden;

  __device__ __forceinline__ Units(int strip, int count)
      : first(strip * kWarpSize * size + lane_id() * (aligned ? size : 1)), hidden(count) {}

  __device__ __forceinline__ int unit(int i) const { return first + (aligned ? i : i * kWarpSize); }
  static __device__ __forceinline__ void convert(const Loaded& loaded, Compute<S> (&values)[size]) {
#pragma unroll
    for (int i = 0; i < size; ++i) values[i] = to_compute(loaded.values[i]);
  }
  // Without a branch: what lies past the last unit is read as a copy of the first one, and never stored.
  __device__ __forceinline__ Loaded load(const S* row) const {
    if constexpr (aligned) {
      return load_vector(row + (first < hidden ? first : 0));
    } else {
      Loaded loaded;
#pragma unroll
      for (int i = 0; i < size; ++i) loaded.values[i] = row[unit(i) < hidden ? unit(i) : 0];
      return loaded;
    }
  }
  __device__ __forceinline__ void store(Compute<S>* row, const Compute<S> (&values)[size]) const {
    using T = Compute<S>;
    constexpr int width = Vector<T>::size;
    if constexpr (aligned) {
      if (first >= hidden) return;
#pragma unroll
      for (int i = 0; i < size; i += width) {
        Vector<T> part;
#pragma unroll
        for (int k = 0; k < width; ++k) part.values[k] = values[i + k];
        store_vector(row + first + i, part);
      }
    } else {
#pragma unroll
      for (int i = 0; i < size; ++i) {
        if (unit(i) < hidden) row[unit(i)] = values[i];
      }
    }
  }
};

// A zero adds nothing, whatever the weight is.
template <typename T, int size>
__device__ __forceinline__ void add_row(T x, const T (&weight)[size], T (&sums)[size]) {
#pragma unroll
  for (int i = 0; i < size; ++i) sums[i] = x != T(0) ? fma(x, weight[i], sums[i]) : sums[i];
}

// sums [count, B, H], the first `count` tiles. Warps are numbered by rows, then strips, then tiles, so that those of a
// block read the same weights at about the same time.
template <typename S, bool gathers, bool aligned, int rows_each>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 2 && aligned ? 3 : 4)
    nade_sums_kernel(NadeArguments<S> arguments, NadeTiles tiles, int count, Compute<S>* __restrict__ all_sums) {
  using T = Compute<S>;
  constexpr int size = Units<S, aligned>::size;
  AR_FAST_SHARED(T, all_factors, [kWarps][kStep][rows_each]);
  AR_FAST_SHARED(int64_t, all_rows, [kWarps][kStep][gathers ? rows_each : 1]);
  const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int hidden = arguments.hidden, batch = arguments.batch;
  const int groups = (batch + rows_each - 1) / rows_each, strips = (hidden + kWarpSize * size - 1) / (kWarpSize * size);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= static_cast<int64_t>(count) * strips * groups) return;  // all lanes, and no barrier of the block follows
  const int first_row = static_cast<int>(index % groups) * rows_each;
  const Units<S, aligned> units(static_cast<int>(index / groups % strips), hidden);
  const int tile = static_cast<int>(index / groups / strips);
  const int start = tiles.start + tile * tiles.tile, stop = min(start + tiles.tile, tiles.stop);
  T(&factors)[kStep][rows_each] = all_factors[warp];
  auto& rows = all_rows[warp];

  T sums[rows_each][size];
#pragma unroll
  for (int r = 0; r < rows_each; ++r) {
#pragma unroll
    for (int i = 0; i < size; ++i) sums[r][i] = T(0);
  }
  for (int first = start; first < stop; first += kStep) {
    const bool inside = first + lane < stop;
    const int variable = inside ? arguments.variable_at(first + lane) : 0;
    const int64_t begin = gathers ? arguments.first_in_row(variable) : variable;
    const int64_t end = gathers ? arguments.first_in_row(variable + 1) : 0;
    Added<T> added[rows_each];
#pragma unroll
    for (int r = 0; r < rows_each; ++r) {
      added[r] = {begin, T(0)};
      if (!inside || first_row + r >= batch) continue;
      if constexpr (gathers) {
        added[r] = arguments.added(first_row + r, variable, begin, end);
      } else {
        added[r].factor = arguments.x[static_cast<int64_t>(first_row + r) * arguments.variables + variable];
      }
    }
    __syncwarp();
#pragma unroll
    for (int r = 0; r < rows_each; ++r) {
      factors[lane][r] = added[r].factor;
      if (gathers || r == 0) rows[lane][gathers ? r : 0] = added[r].row * hidden;
    }
    __syncwarp();
    const int positions = min(kStep, stop - first);
    if constexpr (gathers) {
      for (int p = 0; p < positions; ++p) {
        typename Units<S, aligned>::Loaded weight[rows_each];
#pragma unroll
        for (int r = 0; r < rows_each; ++r) weight[r] = units.load(arguments.in_weight + rows[p][r]);
#pragma unroll
        for (int r = 0; r < rows_each; ++r) {
          T w[size];
          units.convert(weight[r], w);
          add_row(factors[p][r], w, sums[r]);
        }
      }
    } else {
      for (int p = 0; p < positions; p += kAhead) {  // past the end: the first weight row, times zero
        typename Units<S, aligned>::Loaded weight[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k) weight[k] = units.load(arguments.in_weight + rows[p + k][0]);
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          T w[size];
          units.convert(weight[k], w);
#pragma unroll
          for (int r = 0; r < rows_each; ++r) add_row(factors[p + k][r], w, sums[r]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < rows_each; ++r) {
    const int64_t row = static_cast<int64_t>(tile) * batch + first_row + r;
    if (first_row + r < batch) units.store(all_sums + row * hidden, sums[r]);
  }
}

constexpr int kSumsAhead = 16;

template <typename T, bool backward>
__global__ void __launch_bounds__(kThreads)
    nade_running_sums_kernel(int64_t states, int hidden, int tiles, T* sums, const T* initial, int64_t initial_stride,
                             T* total) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= states) return;
  T running = initial == nullptr ? T(0) : initial[initial_stride == 0 ? i % hidden : i];
  const int64_t step = backward ? -states : states;
  T* at = sums + i + (backward ? (tiles - 1) * states : 0);
  for (int tile = 0; tile < tiles; tile += kSumsAhead, at += kSumsAhead * step) {
    T own[kSumsAhead];
#pragma unroll
    for (int k = 0; k < kSumsAhead; ++k) own[k] = tile + k < tiles ? at[k * step] : T(0);
#pragma unroll
    for (int k = 0; k < kSumsAhead; ++k) {
      if (tile + k < tiles) at[k * step] = running;
      running = tile + k < tiles ? running + own[k] : running;
    }
  }
  total[i] = running;
}

}  // namespace

template <typename T>
cudaError_t nade_running_sums(int64_t rows, int hidden, int tiles, bool backward, T* sums, const T* initial,
                              int64_t initial_stride, T* total, cudaStream_t stream) {
  const int64_t states = rows * hidden;
  if (states == 0) return cudaSuccess;
  return launch({"nade_running_sums", static_cast<unsigned>(ceil_divide(states, kThreads)), kThreads, 0, stream},
                backward ? nade_running_sums_kernel<T, true> : nade_running_sums_kernel<T, false>, states, hidden,
                tiles, sums, initial, initial_stride, total);
}

template <typename S>
cudaError_t nade_states(const NadeArguments<S>& arguments, const NadeTiles& tiles, const Compute<S>* initial,
                        int64_t initial_stride, Compute<S>* states, Compute<S>* after, cudaStream_t stream) {
  const int64_t rows = arguments.batch, hidden = arguments.hidden;
  if (rows == 0 || hidden == 0) return cudaSuccess;
  // The sum of the last tile leads to the state after it only.
  const int count = tiles.count() - (after == nullptr ? 1 : 0);
  if (count > 0) {
    const bool gathers = arguments.categories != nullptr || arguments.in_offsets != nullptr;
    const int strip = kWarpSize * (arguments.aligned ? Units<S, true>::size : Units<S, false>::size);
    const auto warps = [&](int each) { return count * ceil_divide(rows, each) * ceil_divide(hidden, strip); };
    auto kernel = gathers             ? arguments.aligned ? nade_sums_kernel<S, true, true, kFewRows>
                                                          : nade_sums_kernel<S, true, false, kFewRows>
                  : arguments.aligned ? nade_sums_kernel<S, false, true, kFewRows>
                                      : nade_sums_kernel<S, false, false, kFewRows>;
    int each = kFewRows;
    if constexpr (sizeof(S) == 4) {  // other types have no registers for more sums
      if (!gathers && arguments.aligned && warps(kManyRows) >= kEnoughWarps) {
        kernel = nade_sums_kernel<S, false, true, kManyRows>;
        each = kManyRows;
      }
    }
    const cudaError_t error =
        launch({"nade_sums", static_cast<unsigned>(ceil_divide(warps(each), kWarps)), kThreads, 0, stream}, kernel,
               arguments, tiles, count, states);
    if (error != cudaSuccess) return error;
  }
  return nade_running_sums(rows, arguments.hidden, count, false, states, initial, initial_stride,
                           after != nullptr ? after : states + count * rows * hidden, stream);
}

#define AR_FAST_INSTANTIATE(S)                                                                                   \
  template cudaError_t nade_states<S>(const NadeArguments<S>&, const NadeTiles&, const Compute<S>*, int64_t,     \
                                      Compute<S>*, Compute<S>*, cudaStream_t);
AR_FAST_INSTANTIATE(float)
AR_FAST_INSTANTIATE(float16)
AR_FAST_INSTANTIATE(bfloat16)
AR_FAST_INSTANTIATE(double)
#undef AR_FAST_INSTANTIATE
template cudaError_t nade_running_sums<float>(int64_t, int, int, bool, float*, const float*, int64_t, float*,
                                              cudaStream_t);
template cudaError_t nade_running_sums<double>(int64_t, int, int, bool, double*, const double*, int64_t, double*,
                                               cudaStream_t);

}  // namespace ar_fast::cuda
