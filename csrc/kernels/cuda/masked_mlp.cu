// One-pass sampling of a masked perceptron: a kernel that interprets the program of layers, with one or more warps per
// sample, for all positions (small networks) or for a block of them (masked_mlp_blocks.h).
//
// Each unit of a sample is computed once, when the last variable that it sees is known. The warps of a sample take four
// units at a time: lanes stride over the inputs, four of them under way for each unit, and one butterfly adds them up.
// Where one warp computes a sample, the samples of a block of threads need no barrier, but every 32 positions;
// otherwise a barrier follows every layer. What a launch works on is in shared memory if it fits there, otherwise in
// the state tensor and in scratch.
#include <algorithm>

#include "draws_device.h"
#include "masked_mlp_blocks.h"

namespace ar_fast::cuda {
namespace {

constexpr int kUnitsTogether = 4, kAhead = 4, kChunksAhead = 8;
constexpr int kMostWarps = 8, kRowsOfOneWarp = 4;
constexpr int64_t kBlockPositions = 16;
constexpr int kMostValues = masked_mlp_max_layers + 1;

template <typename T>
struct Transformed {
  T x, log_derivative;
};

// A call of its own leaves its registers to the products.
template <typename T>
__device__ __noinline__ Transformed<T> transformed(const Transform transform, T* parameters, int rows, T noise) {
  Transformed<T> result;
  result.x = transform_inverse(transform, parameters, rows, noise, result.log_derivative);
  return result;
}

// What the threads of a block look up, in shared memory.
struct Places {
  // Of a value, units begins[v] ... ends[v] - 1 are worked on; those before starts[v] are known when the launch starts.
  // Unit u is element bases[v] + u of what a row works on.
  int begins[kMostValues], starts[kMostValues], ends[kMostValues], bases[kMostValues];
  int first_parameter, features, parameters;
  // Of each hidden layer: the units that are computable before the position that was looked at, and after each of 32.
  int unit_ends[masked_mlp_max_layers][kWarpSize + 1];
  TermSums terms[kMostTerms];
};

// A sample. Its threads are `count`, of which this one is number `thread`; `active`: it is one of the batch.
template <typename S, bool many_warps>
class Sampler {
 public:
  using T = Compute<S>;

  __device__ Sampler(const MaskedMlpSample& sample, const MlpBlock& block, Places& places, int64_t row, T* shared,
                     bool in_shared, T* parameters)
      : sample_(sample), draws_(sample.draws), block_(block), places_(places), row_(row), shared_(shared),
        state_(static_cast<T*>(sample.state) + row * sample.features), in_shared_(in_shared),
        values_(in_shared ? shared : state_), parameters_(parameters - places.first_parameter), lane_(lane_id()),
        warp_(many_warps ? static_cast<int>(threadIdx.x) / kWarpSize : 0),
        warps_(many_warps ? static_cast<int>(blockDim.x) / kWarpSize : 1),
        columns_each_(static_cast<int>(sample.in_rows / sample.draws.variables)),
        parameters_each_(static_cast<int>(sample.layers[sample.hidden_layers].units / sample.draws.variables)) {}

  // The rows of the batch share out the weights that the positions of a block read: into the L2 cache, before they are
  // needed.
  __device__ __forceinline__ void prefetch() const {
    constexpr int line = 128 / static_cast<int>(sizeof(S));
    const int64_t count = warps_ * kWarpSize, step = sample_.draws.batch * count;
    for (int l = 0; l <= sample_.hidden_layers; ++l) {
      const MaskedMlpLayer& layer = sample_.layers[l];
      const bool last = l == sample_.hidden_layers;
      const int first = last ? places_.first_parameter : places_.starts[l + 1];
      const int units = (last ? first + places_.parameters : places_.ends[l + 1]) - first;
      for (int t = 0; t < layer.terms; ++t) {
        const MaskedMlpTerm& term = layer.term[t];
        const int begin = places_.begins[term.source], inputs = places_.ends[term.source] - begin;
        const int lines = (inputs + line - 1) / line;
        const int64_t width = masked_mlp_width(sample_, term.source);
        for (int64_t i = row_ * count + warp_ * kWarpSize + lane_; i < static_cast<int64_t>(units) * lines; i += step) {
          prefetch_l2(static_cast<const S*>(term.weight) + (first + i / lines) * width + begin + i % lines * line);
        }
      }
    }
  }

  // What comes from before the positions of the launch. partial: the row's partial sums.
  __device__ __forceinline__ void start(const T* partial) {
    const int thread = warp_ * kWarpSize + lane_, count = warps_ * kWarpSize;
    if (in_shared_) {
      for (int v = 0; v <= sample_.hidden_layers; ++v) {
        const int64_t offset = masked_mlp_offset(sample_, v);
        for (int u = places_.begins[v] + thread; u < places_.starts[v]; u += count) {
          shared_[places_.bases[v] + u] = state_[offset + u];
        }
      }
    }
    int term = 0;
    for (int l = 0; l <= sample_.hidden_layers; ++l) {
      const MaskedMlpLayer& layer = sample_.layers[l];
      const bool last = l == sample_.hidden_layers;
      T* const out = last ? parameters_ : values_ + places_.bases[l + 1];
      const int begin = last ? places_.first_parameter : places_.starts[l + 1];
      const int end = last ? places_.first_parameter + places_.parameters : places_.ends[l + 1];
      const T* const bias = layer.bias == nullptr ? nullptr
                                                  : static_cast<const T*>(layer.bias) + row_ * layer.bias_stride;
      for (int u = begin + thread; u < end; u += count) {
        T sum = bias == nullptr ? T(0) : bias[u];
        for (int t = 0; t < layer.terms; ++t) {
          const TermSums& sums = places_.terms[term + t];
          const T* const own = partial + sums.at(0, u);
          const int chunks = sums.chunks;
          for (int first = 0; first < chunks; first += kChunksAhead) {
            T read[kChunksAhead];
#pragma unroll
            for (int c = 0; c < kChunksAhead; ++c) {
              read[c] = own[static_cast<int64_t>(min(first + c, chunks - 1)) * sums.units];
            }
#pragma unroll
            for (int c = 0; c < kChunksAhead; ++c) sum = first + c < chunks ? sum + read[c] : sum;
          }
        }
        if (layer.add >= 0 && u < places_.begins[layer.add]) {
          sum += state_[masked_mlp_offset(sample_, layer.add) + u];
        }
        out[u] = sum;
      }
      term += layer.terms;
    }
    if (block_.begin > draws_.start) log_prob_ = draws_.log_prob[row_];
  }

  // Position p, number `step` of those that were looked at.
  __device__ __forceinline__ void position(int p, int step, const DrawNoise& ahead) {
    const MaskedMlpRange columns = columns_of(p), rows = parameters_of(p);
    const int known_columns = static_cast<int>(columns.begin);
    for (int l = 0; l < sample_.hidden_layers; ++l) {
      const int begin = places_.unit_ends[l][step], end = places_.unit_ends[l][step + 1];
      if (begin == end) continue;
      units(sample_.layers[l], begin, end, step, known_columns, values_ + places_.bases[l + 1]);
      join();
    }
    units(sample_.layers[sample_.hidden_layers], static_cast<int>(rows.begin), static_cast<int>(rows.end), step,
          known_columns, parameters_);
    join();
    if (warp_ == 0) {
      const T x = draw(p, step, rows, ahead);
      const int own = static_cast<int>(columns.end - columns.begin);
      const T absent = is_category(x, own) ? T(0) : not_a_number<T>;
      T* const out = values_ + places_.bases[0];
      for (int c = lane_; c < own; c += kWarpSize) {
        out[known_columns + c] = own == 1 ? x : x == static_cast<T>(c) ? T(1) : absent;
      }
      if (lane_ == 0) draws_.template values_of<T>(row_)[p] = x;
    }
    join();
  }

  // What the launch worked on goes back to the state.
  __device__ __forceinline__ void finish() {
    const int thread = warp_ * kWarpSize + lane_, count = warps_ * kWarpSize;
    if (in_shared_) {
      for (int v = 0; v <= sample_.hidden_layers; ++v) {
        const int64_t offset = masked_mlp_offset(sample_, v);
        for (int u = places_.begins[v] + thread; u < places_.ends[v]; u += count) {
          state_[offset + u] = shared_[places_.bases[v] + u];
        }
      }
    }
    if (thread == 0) draws_.log_prob[row_] = log_prob_;
  }

  __device__ __forceinline__ static void join() {
    if constexpr (many_warps) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

 private:
  __device__ __forceinline__ MaskedMlpRange columns_of(int p) const {
    if (sample_.in_offsets != nullptr) return {sample_.in_offsets[p], sample_.in_offsets[p + 1]};
    return {p * columns_each_, (p + 1) * columns_each_};
  }
  __device__ __forceinline__ MaskedMlpRange parameters_of(int p) const {
    if (sample_.out_offsets != nullptr) return {sample_.out_offsets[p], sample_.out_offsets[p + 1]};
    return {p * parameters_each_, (p + 1) * parameters_each_};
  }

  // Adds what four units, `unit` and the next ones up to `last`, get from a term, of whose inputs `known` are there.
  // Each lane has a share of the inputs. A weight that a unit does not see is read but not added.
  template <bool in_shared>
  __device__ __forceinline__ void add_term(const MaskedMlpTerm& term, int unit, int last, int known,
                                           T (&sums)[kUnitsTogether]) const {
    const int64_t inputs = masked_mlp_width(sample_, term.source);
    const T* const below = (in_shared ? shared_ : state_) + places_.bases[term.source];
    const S* rows[kUnitsTogether];
    int extents[kUnitsTogether];
#pragma unroll
    for (int u = 0; u < kUnitsTogether; ++u) {
      const int at = min(unit + u, last);
      rows[u] = static_cast<const S*>(term.weight) + at * inputs;
      extents[u] = min(term.extents[at], known);
    }
    for (int k = places_.begins[term.source] + lane_; k < known; k += kAhead * kWarpSize) {
      T x[kAhead];
      S weights[kAhead][kUnitsTogether];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int at = min(k + a * kWarpSize, known - 1);
        x[a] = below[at];
#pragma unroll
        for (int u = 0; u < kUnitsTogether; ++u) weights[a][u] = rows[u][at];
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
#pragma unroll
        for (int u = 0; u < kUnitsTogether; ++u) {
          const T sum = fma(to_compute(weights[a][u]), x[a], sums[u]);
          sums[u] = k + a * kWarpSize < extents[u] ? sum : sums[u];
        }
      }
    }
  }

  // The value of a unit, from what it had at the start and the sum of its terms.
  __device__ __forceinline__ T value_of(const MaskedMlpLayer& layer, int unit, T sum) const {
    if (layer.add >= 0 && unit >= places_.begins[layer.add]) sum += values_[places_.bases[layer.add] + unit];
    return layer.activated ? activate(sample_.activation, sum) : sum;
  }

  // Computes units begin ... end - 1 of a layer, which has their sums from before in out[unit].
  __device__ __forceinline__ void units(const MaskedMlpLayer& layer, int begin, int end, int step, int known_columns,
                                        T* out) const {
    if (layer.terms == 0) {
      for (int unit = begin + warp_ * kWarpSize + lane_; unit < end; unit += warps_ * kWarpSize) {
        out[unit] = value_of(layer, unit, out[unit]);
      }
      return;
    }
    for (int unit = begin + warp_ * kUnitsTogether; unit < end; unit += warps_ * kUnitsTogether) {
      T sums[kUnitsTogether] = {};
      for (int t = 0; t < layer.terms; ++t) {
        const MaskedMlpTerm& term = layer.term[t];
        const int known = term.source == 0 ? known_columns : places_.unit_ends[term.source - 1][step + 1];
        if (in_shared_) {
          add_term<true>(term, unit, end - 1, known, sums);
        } else {
          add_term<false>(term, unit, end - 1, known, sums);
        }
      }
      const T sum = warp_sum_4(sums);
      const int own = unit + lane_ / 8;
      if (lane_ % 8 == 0 && own < end) out[own] = value_of(layer, own, out[own] + sum);
    }
  }

  __device__ __forceinline__ T draw(int p, int step, MaskedMlpRange rows, const DrawNoise& ahead) {
    const DrawNoise noise = {__shfl_sync(kFullMask, ahead.uniform, step), __shfl_sync(kFullMask, ahead.deviate, step)};
    if (const T* known = draws_.template known_value<T>(row_, p)) return *known;
    const int count = static_cast<int>(rows.end - rows.begin);
    T* const parameters = parameters_ + rows.begin;
    if (draws_.head.kind == HeadKind::transform) return transform(p, parameters, count);
    const T x = draw_value(draws_, row_, p, parameters, count, noise);
    log_prob_ += drawn_log_prob(draws_, p, parameters, count, x);
    return x;
  }

  // One lane computes it, because it overwrites the parameters.
  __device__ __forceinline__ T transform(int p, T* parameters, int count) {
    Transformed<T> result = {};
    if (lane_ == 0) {
      result = transformed(sample_.transform, parameters, count, draws_.template noise<T>(row_, p));
    }
    log_prob_ += static_cast<double>(result.log_derivative);
    return __shfl_sync(kFullMask, result.x, 0);
  }

  const MaskedMlpSample& sample_;
  const Draws& draws_;
  const MlpBlock& block_;
  const Places& places_;
  const int64_t row_;
  T *const shared_, *const state_;
  const bool in_shared_;
  T *const values_, *const parameters_;
  const int lane_, warp_, warps_, columns_each_, parameters_each_;
  double log_prob_ = 0;
};

// Where everything that a launch works on begins; by one thread.
__device__ inline void place_values(const MaskedMlpSample& sample, const MlpBlock& block, int most_features,
                                    Places& places) {
  const int hidden = static_cast<int>(sample.hidden_layers);
  int features = 0;
  for (int v = 0; v <= hidden; ++v) {
    places.begins[v] = static_cast<int>(masked_mlp_known(sample, v, block.first));
    places.starts[v] = static_cast<int>(masked_mlp_known(sample, v, block.begin));
    places.ends[v] = static_cast<int>(v == 0 ? masked_mlp_columns(sample, block.end - 1).end
                                             : masked_mlp_units(sample, v - 1, block.end - 1).end);
    places.bases[v] = features - places.begins[v];
    features += places.ends[v] - places.begins[v];
  }
  places.features = features;
  places.first_parameter = static_cast<int>(masked_mlp_parameters(sample, block.begin).begin);
  places.parameters = static_cast<int>(masked_mlp_parameters(sample, block.end - 1).end) - places.first_parameter;
  if (features <= most_features) return;
  for (int v = 0; v <= hidden; ++v) places.bases[v] = static_cast<int>(masked_mlp_offset(sample, v));
}

struct MlpMemory {
  int features, parameters;        // that shared memory holds for a row
  int64_t partial_sums;            // of a row, in scratch
  int64_t out_rows;                // parameters of a row, in scratch after the partial sums of all
};

template <typename S, bool many_warps>
__global__ void __launch_bounds__((many_warps ? kMostWarps : kRowsOfOneWarp) * kWarpSize,
                                  (many_warps ? 2 : 4) / (sizeof(S) == 8 ? 2 : 1))
    masked_mlp_sample_kernel(const MaskedMlpSample sample, MlpBlock block, MlpMemory memory, Compute<S>* scratch) {
  using T = Compute<S>;
  AR_FAST_SHARED(Places, all_places, [1]);
  AR_FAST_DYNAMIC_SHARED(T, shared);
  Places& places = all_places[0];
  // By the last warp: the first ones have the terms.
  if (threadIdx.x == blockDim.x - 1) place_values(sample, block, memory.features, places);
  all_term_sums(sample, block, kMlpStep, places.terms);
  __syncthreads();
  const int own = many_warps ? 0 : static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t row = many_warps ? blockIdx.x : static_cast<int64_t>(blockIdx.x) * kRowsOfOneWarp + own;
  const bool active = row < sample.draws.batch;
  T* const row_shared = shared + own * (memory.features + memory.parameters);
  T* const parameters = places.parameters <= memory.parameters
                            ? row_shared + memory.features
                            : scratch + sample.draws.batch * memory.partial_sums + row * memory.out_rows;
  Sampler<S, many_warps> sampler(sample, block, places, row, row_shared, places.features <= memory.features,
                                 parameters);
  if (active && block.last - block.first < sample.draws.variables) sampler.prefetch();
  if (active) sampler.start(scratch + row * memory.partial_sums);
  for (int first = block.begin; first < block.end; first += kWarpSize) {
    __syncthreads();  // nobody reads the ends of the positions before, and all have started
    const int count = min(kWarpSize, block.end - first);
    for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(sample.hidden_layers) * (kWarpSize + 1);
         i += static_cast<int>(blockDim.x)) {
      const int l = i / (kWarpSize + 1), step = i % (kWarpSize + 1), p = first + step - 1;
      if (step <= count) places.unit_ends[l][step] = p < 0 ? 0 : sample.layers[l].unit_ends[p];
    }
    DrawNoise noise = {};
    if (active && sample.draws.head.kind != HeadKind::transform) {
      noise = draw_noise(sample.draws, row, min(first + lane_id(), block.end - 1));
    }
    __syncthreads();
    for (int step = 0; active && step < count; ++step) sampler.position(first + step, step, noise);
  }
  if (active) sampler.finish();
}

int64_t bytes_of(ScalarType storage, int64_t count) { return count * (storage == ScalarType::float64 ? 8 : 4); }

MlpMemory memory_of(const MaskedMlpSample& sample, const MaskedMlpCut& cut) {
  const bool blocked = cut.block < sample.draws.variables;
  return {static_cast<int>(cut.features), static_cast<int>(cut.parameters), blocked ? partial_sums(sample) : 0,
          sample.layers[sample.hidden_layers].units};
}

template <typename S>
cudaError_t run(const MaskedMlpSample& sample, void* scratch, cudaStream_t stream) {
  const MaskedMlpCut cut = masked_mlp_sample_cuda_cut(sample);
  const MlpMemory memory = memory_of(sample, cut);
  const Draws& draws = sample.draws;
  const auto blocks = static_cast<unsigned>((draws.batch + cut.rows - 1) / cut.rows);
  const auto shared = static_cast<size_t>(cut.rows * bytes_of(sample.storage, cut.features + cut.parameters));
  for (int64_t first = draws.start / cut.block * cut.block; first < draws.stop; first += cut.block) {
    const auto clamped = [&](int64_t position) { return static_cast<int>(std::min(position, draws.variables)); };
    const MlpBlock block{clamped(first), clamped(first + cut.block), static_cast<int>(std::max(first, draws.start)),
                         static_cast<int>(std::min(first + cut.block, draws.stop))};
    if (first > 0) {
      const cudaError_t error = launch_masked_mlp_sums(sample, block, scratch, stream);
      if (error != cudaSuccess) return error;
    }
    const cudaError_t error =
        launch({"masked_mlp_sample", blocks, static_cast<unsigned>(cut.rows * cut.warps * kWarpSize), shared, stream},
               cut.warps > 1 ? masked_mlp_sample_kernel<S, true> : masked_mlp_sample_kernel<S, false>, sample, block,
               memory, static_cast<Compute<S>*>(scratch));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

MaskedMlpCut masked_mlp_sample_cuda_cut(const MaskedMlpSample& sample) {
  using namespace cuda;
  const int64_t variables = sample.draws.variables;
  const auto groups = [&](int64_t units, int64_t warps) {  // of four units, one after another at an average position
    const int64_t each = variables * kUnitsTogether * warps;
    return (units + each - 1) / each;
  };
  MaskedMlpCut cut{};
  cut.warps = 1;
  for (int64_t l = 0; l <= sample.hidden_layers; ++l) {
    cut.warps = std::max(cut.warps, std::min<int64_t>(groups(sample.layers[l].units, 1), kMostWarps));
  }
  cut.rows = cut.warps > 1 ? 1 : kRowsOfOneWarp;
  int64_t inputs = 0;
  for (int64_t l = 0; l <= sample.hidden_layers; ++l) {
    for (int32_t t = 0; t < sample.layers[l].terms; ++t) {
      inputs += groups(sample.layers[l].units, cut.warps) * masked_mlp_width(sample, sample.layers[l].term[t].source);
    }
  }
  const bool blocked = inputs >= kBlockedInputs && variables > kBlockPositions;
  cut.block = blocked ? kBlockPositions : variables;
  // Blocks may have more units than the average: twice as many have room.
  const auto in_block = [&](int64_t units) {
    return blocked ? std::min(units, 2 * ((units * cut.block + variables - 1) / variables)) : units;
  };
  const int64_t out_rows = sample.layers[sample.hidden_layers].units;
  const auto fits = [&](int64_t count) {
    return cut.rows * bytes_of(sample.storage, cut.features + count) <= kMostSharedBytes;
  };
  if (fits(in_block(sample.features))) cut.features = in_block(sample.features);
  if (fits(in_block(out_rows))) cut.parameters = in_block(out_rows);
  cut.scratch_bytes = bytes_of(sample.storage, sample.draws.batch * ((blocked ? partial_sums(sample) : 0) + out_rows));
  return cut;
}

cudaError_t masked_mlp_sample_cuda(const MaskedMlpSample& sample, void* scratch, cudaStream_t stream) {
  return cuda::dispatch_storage(sample.storage, [&](auto storage) {
    return cuda::run<decltype(storage)>(sample, scratch, stream);
  });
}

}  // namespace ar_fast
