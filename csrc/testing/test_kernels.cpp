// Kernels that test the emulation itself, driven by tests/build/test_emulation.py through ctypes. Each function returns
// the launch's cudaError_t; ar_fast_emulation_error() has the words.
#include <string>

#include "../kernels/cuda/masked_linear_cuda.h"
#include "../kernels/cuda/masked_linear_device.h"
#include "../kernels/cuda/masked_mlp_blocks.h"
#include "../kernels/cuda/nade_cuda.h"
#include "../kernels/cuda/nade_device.h"
#include "../kernels/cuda/rnn_cuda.h"
#include "../ops/explain.h"

#define AR_FAST_EXPORT extern "C" __attribute__((visibility("default")))

namespace ar_fast::cuda {
namespace {

// Each thread reads its neighbour's value: a race unless there is a barrier between.
__global__ void neighbour_kernel(int* out, bool with_barrier) {
  AR_FAST_SHARED(int, values, [64]);
  const int t = static_cast<int>(threadIdx.x);
  values[t] = t;
  if (with_barrier) __syncthreads();
  out[t] = values[(t + 1) % 64];
}

enum class Divergence {
  exited_before_barrier,
  two_barriers,
  exited_before_shuffle,
  two_masks,
  warp_against_barrier,
  not_in_mask
};

__global__ void divergent_kernel(Divergence divergence) {
  const int t = static_cast<int>(threadIdx.x);
  const bool first = t < 16;
  switch (divergence) {
    case Divergence::exited_before_barrier:
      if (first) __syncthreads();
      return;
    case Divergence::two_barriers:
      if (first) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      return;
    case Divergence::exited_before_shuffle:
      if (first) __shfl_xor_sync(kFullMask, t, 1);
      return;
    case Divergence::two_masks:
      __shfl_xor_sync(first ? 0x0000FFFFu : kFullMask, t, 1);
      return;
    case Divergence::warp_against_barrier:
      if (first) {
        __syncwarp();
      } else {
        __syncthreads();
      }
      return;
    case Divergence::not_in_mask:
      __syncwarp(0x0000FFFFu);
      return;
  }
}

__global__ void half_warps_kernel(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (t < 16) {
    out[t] = __shfl_xor_sync(0x0000FFFFu, t, 1);
  } else {
    out[t] = __shfl_sync(0xFFFF0000u, t, 20);
  }
}

__global__ void vector_kernel(const float* in, float* out) { store_vector(out, load_vector(in)); }

__global__ void warp_kernel(const float* in, float* out) {
  const int lane = lane_id();
  const float value = in[lane];
  float eight[8];
  for (int i = 0; i < 8; ++i) eight[i] = in[lane] * static_cast<float>(i + 1);
  out[lane] = warp_sum(value);
  out[32 + lane] = warp_sum_8(eight);
  out[64 + lane] = __shfl_up_sync(kFullMask, value, 3);
  out[96 + lane] = __shfl_down_sync(kFullMask, value, 5);
  out[128 + lane] = static_cast<float>(__popc(__ballot_sync(kFullMask, value > 0)));
  out[160 + lane] = static_cast<float>(__any_sync(kFullMask, lane == 7) + 2 * __all_sync(kFullMask, lane < 31));
  out[192 + lane] = static_cast<float>(__syncthreads_count(value > 0));
}

// c = a b for a [16][16] and b [16][8], 16-bit, row-major; b is read transposed.
template <typename T>
__global__ void matrix_kernel(const T* a, const T* b, float* c) {
  AR_FAST_SHARED(T, shared_a, [16][16]);
  AR_FAST_SHARED(T, shared_b, [16][8]);
  const int lane = lane_id();
  for (int i = lane; i < 256; i += 32) shared_a[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) shared_b[i / 8][i % 8] = b[i];
  __syncwarp();
  uint32_t fragment_a[4], fragment_b[4];
  load_matrices(fragment_a, &shared_a[lane % 16][8 * (lane / 16)]);
  load_matrices<true>(fragment_b, &shared_b[lane % 16][0]);
  float sums[4] = {};
  multiply_matrices<T>(sums, fragment_a, {fragment_b[0], fragment_b[1]});
  for (int i = 0; i < 4; ++i) c[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = sums[i];
}

// c = a b for a [16][8] and b [8][8], row-major, rounded to tf32.
__global__ void tf32_kernel(const float* a, const float* b, float* c) {
  const int group = lane_id() / 4, place = lane_id() % 4;
  const auto rounded = [](float value) { return round_to_tf32(__float_as_uint(value)); };
  const uint32_t fragment_a[4] = {rounded(a[group * 8 + place]), rounded(a[(group + 8) * 8 + place]),
                                  rounded(a[group * 8 + place + 4]), rounded(a[(group + 8) * 8 + place + 4])};
  const uint32_t fragment_b[2] = {rounded(b[place * 8 + group]), rounded(b[(place + 4) * 8 + group])};
  float sums[4] = {};
  multiply_matrices<float>(sums, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) c[(group + 8 * (i / 2)) * 8 + 2 * place + i % 2] = sums[i];
}

// The instructions alone: lane l brings row l of `rows` [32][8], and what it gets goes to fragments [32][4].
__global__ void load_fragments_kernel(const uint16_t* rows, uint32_t* fragments, bool transposed) {
  const int lane = lane_id();
  uint32_t own[4];
  transposed ? load_matrices<true>(own, rows + 8 * lane) : load_matrices(own, rows + 8 * lane);
  for (int i = 0; i < 4; ++i) fragments[4 * lane + i] = own[i];
}

// a [32][4], b [32][2], c [32][4] += their product.
template <typename T>
__global__ void multiply_fragments_kernel(const uint32_t* a, const uint32_t* b, float* c) {
  const int lane = lane_id();
  const uint32_t own_a[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
  const uint32_t own_b[2] = {b[2 * lane], b[2 * lane + 1]};
  float own_c[4];
  for (int i = 0; i < 4; ++i) own_c[i] = c[4 * lane + i];
  multiply_matrices<T>(own_c, own_a, own_b);
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = own_c[i];
}

__global__ void round_to_tf32_kernel(const float* in, float* out) {
  out[threadIdx.x] = __uint_as_float(round_to_tf32(__float_as_uint(in[threadIdx.x])));
}

__global__ void async_kernel(const float* in, float* out, bool with_wait, int source_bytes) {
  AR_FAST_SHARED(float, tile, [128]);
  const int t = static_cast<int>(threadIdx.x);
  copy_async_16(&tile[4 * t], in + 4 * t, source_bytes);
  copy_async_commit();
  if (with_wait) copy_async_wait<0>();
  __syncthreads();
  for (int i = t; i < 128; i += 32) out[i] = tile[127 - i];
}

// 40 KiB of static shared memory beside the dynamic part.
__global__ void large_static_kernel(float* out) {
  AR_FAST_SHARED(float, tile, [10240]);
  AR_FAST_DYNAMIC_SHARED(float, buffer);
  if (threadIdx.x != 0) return;
  tile[0] = buffer[0] = 1;
  *out = tile[0] + buffer[0];
}

__global__ void empty_kernel() {}

template <int bytes>
struct Argument {
  char values[bytes];
};
template <int bytes>
__global__ void argument_kernel(Argument<bytes> argument, char* out) {
  *out = argument.values[bytes - 1];
}

__global__ void uninitialised_kernel(float* out) {
  AR_FAST_SHARED(float, tile, [32]);
  AR_FAST_DYNAMIC_SHARED(float, buffer);
  const int t = static_cast<int>(threadIdx.x);
  out[t] = tile[t];
  out[32 + t] = buffer[t];
}

// Every block waits until all have come; then each adds its share.
__global__ void grid_barrier_kernel(int* arrived, int* sum) {
  if (threadIdx.x == 0) {
    atomicAdd(arrived, 1);
    while (load_acquire(arrived) < static_cast<int>(gridDim.x)) {
    }
  }
  __syncthreads();
  atomicAdd(sum, static_cast<int>(threadIdx.x));
}

__global__ void past_the_end_kernel(float* out) {
  AR_FAST_SHARED(float, tile, [32]);
  const int t = static_cast<int>(threadIdx.x);
  tile[t] = 1;
  // Of what a pointer reads AddressSanitizer alone knows that it lies outside.
  const float* next = tile + 1;
  out[t] = next[t];
}

template <typename T>
__global__ void convert_kernel(const float* in, float* out) {
  T stored;
  from_compute(stored, in[threadIdx.x]);
  out[threadIdx.x] = to_compute(stored);
}

}  // namespace

AR_FAST_EXPORT int ar_fast_test_neighbour(int* out, bool with_barrier) {
  return launch({"neighbour", 1, 64}, neighbour_kernel, out, with_barrier);
}
AR_FAST_EXPORT int ar_fast_test_divergence(int kind) {
  return launch({"divergent", 1, 32}, divergent_kernel, static_cast<Divergence>(kind));
}
AR_FAST_EXPORT int ar_fast_test_half_warps(int* out) { return launch({"half_warps", 1, 32}, half_warps_kernel, out); }
AR_FAST_EXPORT int ar_fast_test_vector(const float* in, float* out) {
  return launch({"vector", 1, 1}, vector_kernel, in, out);
}
AR_FAST_EXPORT int ar_fast_test_warp(const float* in, float* out) {
  return launch({"warp", 1, 32}, warp_kernel, in, out);
}
AR_FAST_EXPORT int ar_fast_test_matrix(const void* a, const void* b, float* c, bool is_bfloat16) {
  if (is_bfloat16) {
    return launch({"matrix", 1, 32}, matrix_kernel<bfloat16>, static_cast<const bfloat16*>(a),
                  static_cast<const bfloat16*>(b), c);
  }
  return launch({"matrix", 1, 32}, matrix_kernel<float16>, static_cast<const float16*>(a),
                static_cast<const float16*>(b), c);
}
AR_FAST_EXPORT int ar_fast_test_tf32(const float* a, const float* b, float* c) {
  return launch({"tf32", 1, 32}, tf32_kernel, a, b, c);
}
AR_FAST_EXPORT int ar_fast_test_load_fragments(const uint16_t* rows, uint32_t* fragments, bool transposed) {
  return launch({"load_fragments", 1, 32}, load_fragments_kernel, rows, fragments, transposed);
}
// kind: 0 float16, 1 bfloat16, 2 tf32
AR_FAST_EXPORT int ar_fast_test_multiply_fragments(int kind, const uint32_t* a, const uint32_t* b, float* c) {
  const auto kernel = kind == 0   ? multiply_fragments_kernel<float16>
                      : kind == 1 ? multiply_fragments_kernel<bfloat16>
                                  : multiply_fragments_kernel<float>;
  return launch({"multiply_fragments", 1, 32}, kernel, a, b, c);
}
AR_FAST_EXPORT int ar_fast_test_round_to_tf32(const float* in, float* out, int count) {
  return launch({"round_to_tf32", 1, static_cast<unsigned>(count)}, round_to_tf32_kernel, in, out);
}
AR_FAST_EXPORT int ar_fast_test_async(const float* in, float* out, bool with_wait, int source_bytes) {
  return launch({"async", 1, 32}, async_kernel, in, out, with_wait, source_bytes);
}
AR_FAST_EXPORT int ar_fast_test_uninitialised(float* out) {
  return launch({"uninitialised", 1, 32, 128}, uninitialised_kernel, out);
}
AR_FAST_EXPORT int ar_fast_test_grid_barrier(int* counters, int blocks, bool co_resident) {
  return launch({"grid_barrier", static_cast<unsigned>(blocks), 64, 0, nullptr, co_resident}, grid_barrier_kernel,
                counters, counters + 1);
}
AR_FAST_EXPORT int ar_fast_test_past_the_end(float* out) {
  return launch({"past_the_end", 1, 32}, past_the_end_kernel, out);
}
// extents: of the grid, then of the block, in x, y and z.
AR_FAST_EXPORT int ar_fast_test_launch(const unsigned* extents, uint64_t dynamic_shared_bytes) {
  const dim3 grid(extents[0], extents[1], extents[2]), block(extents[3], extents[4], extents[5]);
  return launch({"empty", grid, block, dynamic_shared_bytes}, empty_kernel);
}
// By launch, which raises the limit of shared memory, or as a launcher would that did not.
AR_FAST_EXPORT int ar_fast_test_large_static(float* out, uint64_t dynamic_shared_bytes, bool raises_shared_limit) {
  if (raises_shared_limit) return launch({"large_static", 1, 32, dynamic_shared_bytes}, large_static_kernel, out);
  return emulation::run_grid({"large_static", 1, 32, dynamic_shared_bytes, false}, [&] { large_static_kernel(out); });
}
AR_FAST_EXPORT int ar_fast_test_arguments(char* out, bool too_many) {
  const auto run = [&](auto argument) {
    argument.values[sizeof(argument.values) - 1] = 7;
    return launch({"arguments", 1, 1}, argument_kernel<sizeof(argument.values)>, argument, out);
  };
  // Beside a pointer.
  return too_many ? run(Argument<4096>{}) : run(Argument<4088>{});
}
AR_FAST_EXPORT void ar_fast_test_set_scratch_budget(int64_t bytes) { kScratchBudget = bytes; }
AR_FAST_EXPORT void ar_fast_test_set_enough_warps(int64_t warps) { kEnoughWarps = warps; }
AR_FAST_EXPORT void ar_fast_test_set_most_blocks_in_y(int64_t blocks) { kMostBlocksInY = blocks; }
AR_FAST_EXPORT void ar_fast_test_set_blocked_inputs(int64_t inputs) { kBlockedInputs = inputs; }
// What the emulated ops say of what they run, as ar_fast.explain collects it of the real library's.
AR_FAST_EXPORT void ar_fast_test_explain_begin() { explain_begin(); }
AR_FAST_EXPORT const char* ar_fast_test_explain_end() {
  static std::string text;
  text.clear();
  for (const std::string& line : explain_end()) text += line + "\n";
  return text.c_str();
}

// How the launchers cut work of given sizes, for predictions of its time (bench/prediction). Each function fills `cut`
// with what its comment lists, in order: of the plain Bernoulli NADE, of a product with a nested mask, of a plain MADE,
// and of a GRU of one layer with a categorical head.
namespace {
NadeModel plain_nade(int64_t variables, int64_t hidden) {
  NadeModel model{};
  model.storage = ScalarType::float32;
  model.variables = model.in_rows = model.out_rows = variables;
  model.hidden = hidden;
  return model;
}
}  // namespace
// chunk, chunks, strip, strips, rows at a time; tile, tiles, segments
AR_FAST_EXPORT void ar_fast_test_nade_cut(int64_t variables, int64_t hidden, int64_t batch, int64_t* cut) {
  const NadeModel model = plain_nade(variables, hidden);
  const NadeInput input{batch, nullptr, nullptr, false};
  const NadeForwardCut forward = nade_forward_cuda_cut(model, input);
  const NadeBackwardCut backward = nade_backward_cuda_cut(model, input);
  for (const int64_t value : {forward.chunk, forward.chunks, forward.strip, forward.strips, forward.rows, backward.tile,
                              backward.tiles, backward.segments}) {
    *cut++ = value;
  }
}
// rows and columns of a tile, whether by matrix instructions, chunk of the sum
AR_FAST_EXPORT int ar_fast_test_masked_linear_cut(int64_t batch, int64_t out_features, int64_t in_features,
                                                  bool is_bfloat16, int64_t* cut) {
  MaskedLinear arguments{};
  arguments.storage = is_bfloat16 ? ScalarType::bfloat16 : ScalarType::float32;
  arguments.batch = batch;
  arguments.mask.out_features = out_features;
  arguments.mask.in_features = arguments.input_stride = in_features;
  MaskedLinearTiling tiling;
  const cudaError_t error = masked_linear_tiling_cuda(MaskedLinearProduct::y, arguments, tiling);
  cut[0] = tiling.rows;
  cut[1] = tiling.columns;
  cut[2] = tiling.matrix;
  cut[3] = tiling.chunk;
  return error;
}
// positions of a launch, warps of a row, rows of a block, inputs of a partial sum at least. widths: of the columns and of `layers` layers.
AR_FAST_EXPORT void ar_fast_test_masked_mlp_cut(const int64_t* widths, int64_t layers, int64_t batch, int64_t* cut) {
  MaskedMlpSample sample{};
  sample.draws.batch = batch;
  sample.draws.variables = sample.in_rows = sample.features = widths[0];
  sample.hidden_layers = layers - 1;
  for (int64_t l = 0; l < layers; ++l) {
    sample.layers[l].units = widths[l + 1];
    sample.layers[l].terms = 1;
    sample.layers[l].term[0].source = static_cast<int32_t>(l);
    if (l + 1 < layers) sample.features += widths[l + 1];
  }
  const MaskedMlpCut found = masked_mlp_sample_cuda_cut(sample);
  cut[0] = found.block;
  cut[1] = found.warps;
  cut[2] = found.rows;
  cut[3] = kLeastChunk;
}
// unit blocks, units of each, draw blocks
AR_FAST_EXPORT int ar_fast_test_rnn_cut(int64_t hidden, int64_t batch, int64_t categories, bool is_bfloat16,
                                        int64_t* cut) {
  RnnSample sample{};
  sample.draws.batch = batch;
  sample.storage = is_bfloat16 ? ScalarType::bfloat16 : ScalarType::float32;
  sample.cell = RnnCell::gru;
  sample.layers = 1;
  sample.hidden = hidden;
  sample.parameters = categories;
  RnnCut found;
  const cudaError_t error = rnn_cuda_cut(sample, RnnTeams::automatic, found);
  cut[0] = found.unit_blocks;
  cut[1] = found.units;
  cut[2] = found.draw_blocks;
  return error;
}
AR_FAST_EXPORT int ar_fast_test_convert(const float* in, float* out, int count, bool is_bfloat16) {
  return launch({"convert", 1, static_cast<unsigned>(count)},
                is_bfloat16 ? convert_kernel<bfloat16> : convert_kernel<float16>, in, out);
}

}  // namespace ar_fast::cuda
