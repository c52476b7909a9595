// Sampling of recurrent models with one layer and bfloat16 weights that one block does not hold: a cooperative grid
// that multiplies by matrix instructions, and in which no block waits at a barrier of the grid.
//
// A team has unit blocks and one draw block, and takes two rows of the batch at a time: at each position it goes
// through its pairs of rows. The chain of a pair's position: states arrive, parameters, draw, values arrive, gates.
//
// Products keep float32 states. A float is the sum of three bfloat16: the upper 16 bits of what is left, three times,
// without rounding. Weights are the 16 rows of a matrix instruction, and its 8 columns are the three parts of either
// row and one that nobody reads. So each product is exact, and a sum is that of three columns.
// The sums along the inputs are split among the warps, by H alone: warp w has the inputs 16 (8 j + w) and the 15
// after it, for every j. Each lane keeps its part of the block's weights in registers for the whole call.
//
// A state comes by a word of 64 bits: its three parts, and in the upper 16 bits the number of its position (stage). Who
// needs it reads the word until it has the number. A value comes by a word too, as in rnn.cu, the first of a call
// included. A word says all there is to know, so that nothing else has to be seen with it: words are written and read
// relaxed, without a fence, and no counter is between a state and its reader.
//
// What has to hold besides is that no word is written over before everybody has read it. Words of states alternate
// between two buffers, so stage n + 2 is written over stage n.
//   A unit block writes stage n + 2 after it has read all states of stage n + 1. Their writers, all unit blocks, had
//   read all of stage n before, and the value after it, which the draw block drew after it had read stage n.
//   A value is written over the one before after the draw block has read the states that depend on the latter. Each of
//   them was written by the thread that had read it.
// Each of these stores is made only if the loads before it have returned the words that they wait for: by a branch of
// the same thread, or of the threads that it has met at a barrier of the block. So a load that got the later word would
// have allowed, by what it got, the store that it reads from. PTX excludes that without fences ("no thin air").
//
// Nobody waits in a circle: blocks go through (position, pair) in the same order. The states after a position need the
// value and the states before it, of the same pair, and the value after it needs these states. All blocks run at the
// same time, since there are no more than multiprocessors and each fits on one.
#include "rnn_matrix.h"

#include <algorithm>

#include "rnn_device.h"

namespace ar_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRows = 2;           // of the batch that a team takes at a time
constexpr int kColumns = 8;        // of a matrix instruction: 4 for each of them
constexpr int kTile = 16;          // weight rows of a matrix instruction, and inputs
constexpr int kSteps = 4;          // of a warp along the inputs
constexpr int kGroup = 4;          // tiles whose sums are computed side by side
constexpr int kTiles = 8;          // of a block: 128 registers of weights
constexpr int kMostWeights = kTiles * kTile;             // rows of the weights of a block
constexpr int kMostHidden = kSteps * kWarps * kTile;
constexpr int kLeastUnits = 4;     // units of a block
static_assert(kMostWeights * kRows == kThreads, "a thread has at most one unit, of one of the rows");
static_assert(kMostWeights == kWarpSize * Vector<float>::size, "what draw_category_of_few takes");

struct RnnMatrixPlan {
  int rows, unit_blocks, units, padded;  // rows and blocks of a team
  float* states;
  uint64_t* words;
  uint64_t* published;
};

struct RnnMatrixShared {
  float* partial;                  // [kWarps, kTiles, kTile, kColumns]
  float* sums;                     // [kRows, kMostWeights]
};

// The word of a state at a stage. What is not finite has one part, so that it does not become NaN. The number wraps
// around: a word holds either the stage that is waited for or the one two before.
__device__ __forceinline__ uint64_t state_word(float state, int stage) {
  const auto upper = [](float x) { return __float_as_uint(x) & 0xFFFF0000u; };
  uint32_t first = upper(state), second = 0, third = 0;
  if (state - state == 0) {
    const float rest = state - __uint_as_float(first);
    second = upper(rest);
    third = upper(rest - __uint_as_float(second));
  } else if (state != state) {
    first = 0x7FC00000u;
  }
  const uint32_t number = static_cast<uint32_t>(stage + 1) << 16;
  return static_cast<uint64_t>(number | third >> 16) << 32 | second | first >> 16;
}

class RnnMatrixBlock {
 public:
  __device__ RnnMatrixBlock(const RnnSample& sample, const RnnMatrixPlan& plan, const RnnMatrixShared& shared)
      : s_(sample), plan_(plan), shared_(shared), thread_(static_cast<int>(threadIdx.x)),
        warp_(thread_ / kWarpSize), hidden_(static_cast<int>(sample.hidden)),
        gates_(static_cast<int>(sample.gates())), parameters_(static_cast<int>(sample.parameters)) {
    const int per_team = plan.unit_blocks + 1, index = static_cast<int>(blockIdx.x) % per_team;
    const int batch = static_cast<int>(sample.draws.batch);
    begin_ = static_cast<int>(blockIdx.x) / per_team * plan.rows;
    end_ = min(begin_ + plan.rows, batch);
    draws_ = index == plan.unit_blocks;
    first_unit_ = index * plan.units;
    units_ = draws_ ? 0 : min(plan.units, hidden_ - first_unit_);
    count_ = draws_ ? parameters_ : units_ * gates_;
    tiles_ = (count_ + kTile - 1) / kTile;
    const int w = thread_ % kMostWeights;
    bias_ = draws_ && w < count_ ? static_cast<const float*>(sample.out_bias)[w] : 0.0f;
  }

  __device__ void run() {
    load_weights();
    const int count = static_cast<int>(s_.draws.stop - s_.draws.start);
    for (take(begin_); first_row_ < end_; take(first_row_ + kRows)) begin();
    for (int step = 0; step < count; ++step) {
      bool running = false;
      for (take(begin_); first_row_ < end_; take(first_row_ + kRows)) {
        const bool of_these = draws_ ? draw(step) : units(step);
        running = running || of_these;
      }
      if (!running) return;
    }
  }

 private:
  __device__ __forceinline__ RnnSizes sizes() const { return {hidden_, gates_, parameters_}; }

  // The rows that are under way: row and the one after it, if there is one.
  __device__ __forceinline__ void take(int row) {
    first_row_ = row;
    rows_ = min(kRows, end_ - row);
  }

  __device__ __forceinline__ float* state(int step, int row) const {
    return plan_.states + (static_cast<int64_t>(step % 2) * s_.draws.batch + first_row_ + row) * plan_.padded;
  }
  __device__ __forceinline__ uint64_t* words(int stage, int row) const {
    return plan_.words + (static_cast<int64_t>(first_row_ + row) * 2 + stage % 2) * plan_.padded;
  }

  // This lane's part of the operands of every matrix instruction.
  __device__ __forceinline__ void load_weights() {
    const auto* const all = static_cast<const bfloat16*>(draws_ ? s_.out_weight : s_.layer[0].recurrent_weight);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int w = tile * kTile + lane_id() / 4 + half * 8;
        const int64_t row = draws_ ? w : static_cast<int64_t>(w % gates_) * hidden_ + first_unit_ + w / gates_;
#pragma unroll
        for (int i = 0; i < 2 * kSteps; ++i) {
          const int k = (i / 2 * kWarps + warp_) * kTile + lane_id() % 4 * 2 + i % 2 * 8;
          uint32_t pair = 0;
          if (w < count_ && k < hidden_) pair = all[row * hidden_ + k].bits;
          if (w < count_ && k + 1 < hidden_) pair |= static_cast<uint32_t>(all[row * hidden_ + k + 1].bits) << 16;
          weights_[tile][i / 2][half + i % 2 * 2] = pair;
        }
      }
    }
  }

  // The words that a call begins with.
  __device__ __forceinline__ void begin() const {
    if (draws_) {
      const int row = first_row_ + warp_;
      if (warp_ >= rows_ || lane_id() != 0) return;
      publish(0, row, static_cast<const float*>(s_.last)[row], s_.finished[row] != 0);
      return;
    }
    const int row = thread_ / kMostWeights, unit = thread_ % kMostWeights, u = first_unit_ + unit;
    if (row < rows_ && unit < units_) store_relaxed(words(0, row) + u, state_word(state(0, row)[u], 0));
    write_padding(0);
  }

  // Waits for this warp's states of a stage, as operands of the matrix instructions. Past the last unit, the row's
  // first states are looked at instead, so that all loads are under way at once.
  __device__ __forceinline__ void wait_for_states(int stage, uint32_t (&operands)[kSteps][2]) const {
    const int column = lane_id() / 4, row = min(column / 4, rows_ - 1), shift = column % 4 * 16;
    const uint64_t* const from = words(stage, row) + lane_id() % 4 * 2;
    const uint32_t number = static_cast<uint32_t>(stage + 1) << 16;
    uint64_t pairs[kSteps][2][2];
    bool arrived;
    do {
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        const int k = (j * kWarps + warp_) * kTile;
        load_relaxed(from + (k < plan_.padded ? k : 0), pairs[j][0]);
        load_relaxed(from + (k < plan_.padded ? k : 0) + 8, pairs[j][1]);
      }
      uint32_t differs = 0;
#pragma unroll
      for (int i = 0; i < 4 * kSteps; ++i) {
        differs |= static_cast<uint32_t>(pairs[i / 4][i / 2 % 2][i % 2] >> 32) ^ number;
      }
      arrived = differs >> 16 == 0;
    } while (!__all_sync(kFullMask, arrived));
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const bool exists = (j * kWarps + warp_) * kTile < plan_.padded;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t first = static_cast<uint32_t>(pairs[j][half][0] >> shift) & 0xFFFF;
        operands[j][half] = exists ? first | static_cast<uint32_t>(pairs[j][half][1] >> shift) << 16 : 0;
      }
    }
  }

  // shared_.sums[r, w] = this block's weight row w times the state of row r at a stage; parameters with their bias.
  __device__ __forceinline__ void sums_of(int stage) const {
    uint32_t operands[kSteps][2];
    wait_for_states(stage, operands);
    const int lane = lane_id();
#pragma unroll
    for (int first = 0; first < kTiles; first += kGroup) {
      if (first >= tiles_) break;
      float c[kGroup][4] = {};
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
#pragma unroll
        for (int tile = 0; tile < kGroup; ++tile) {
          multiply_matrices<bfloat16>(c[tile], weights_[first + tile][j], operands[j]);
        }
      }
#pragma unroll
      for (int tile = 0; tile < kGroup; ++tile) {
        float* const to = shared_.partial + (warp_ * kTiles + first + tile) * kTile * kColumns + lane / 4 * kColumns +
                          lane % 4 * 2;
        store_pair(to, c[tile][0], c[tile][1]);
        store_pair(to + 8 * kColumns, c[tile][2], c[tile][3]);
      }
    }
    __syncthreads();
    const int row = thread_ / kMostWeights, w = thread_ % kMostWeights;
    if (row < rows_ && w < count_) {
      const float* const from = shared_.partial + w * kColumns + row * 4;
      float sum = 0;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        const Vector<float> parts = load_shared_vector(from + warp * kTiles * kTile * kColumns);
        sum += parts.values[0] + (parts.values[1] + parts.values[2]);
      }
      shared_.sums[thread_] = sum + bias_;
    }
    __syncthreads();
  }

  // The last unit block also writes the states past the last unit, which are zero.
  __device__ __forceinline__ void write_padding(int stage) const {
    const int row = thread_ / kMostWeights, u = hidden_ + thread_ % kMostWeights;
    if (first_unit_ + units_ == hidden_ && row < rows_ && u < plan_.padded) {
      store_relaxed(words(stage, row) + u, state_word(0, stage));
    }
  }

  // Computes this block's units at a step; false if the rows were finished before it, and both buffers have the state.
  __device__ __forceinline__ bool units(int step) const {
    const int row = thread_ / kMostWeights, unit = thread_ % kMostWeights, u = first_unit_ + unit;
    const int batch_row = first_row_ + row;
    const bool has_unit = row < rows_ && unit < units_;
    // Read while states and values are on their way. The state is this thread's own.
    RnnGateInputs<float> inputs{};
    if (has_unit) inputs = rnn_gate_inputs(s_, sizes(), 0, batch_row, u, state(step, row) + u);
    sums_of(step);
    bool running = false;
    if (has_unit) {
      uint64_t word;
      do {
        word = load_relaxed(plan_.published + batch_row);
      } while (rnn_number(word) <= step);
      const RnnBefore<float> before = rnn_before<float>(word);
      const float* const sums = shared_.sums + row * kMostWeights + unit * gates_;
      float next;
      rnn_gates(s_, sizes(), step, 0, batch_row, u, inputs, before, sums, sums, &next);
      store_relaxed(words(step + 1, row) + u, state_word(next, step + 1));
      state(step + 1, row)[u] = next;
      running = before.finished == 0;
    }
    write_padding(step + 1);
    return __syncthreads_or(running) != 0;
  }

  __device__ __forceinline__ void publish(int step, int batch_row, float value, bool finished) const {
    store_relaxed(plan_.published + batch_row, rnn_word(step + 1, value, finished));
  }

  // Draws the values of the rows at a step, a warp a row; false if they are finished after it.
  __device__ __forceinline__ bool draw(int step) const {
    const int row = first_row_ + warp_;
    const bool has_row = warp_ < rows_;
    const int64_t p = s_.draws.start + step;
    RnnAhead<float> ahead{};
    if (has_row) ahead = rnn_look_ahead<float>(s_, sizes(), row, p);
    sums_of(step + 1);
    bool running = false;
    if (has_row) {
      const bool finished = rnn_draw_row<true>(
          s_, sizes(), row, p, ahead, shared_.sums + warp_ * kMostWeights,
          [&](float value, bool finishes) { publish(step + 1, row, value, finishes); });
      running = lane_id() == 0 && !finished;
    }
    return __syncthreads_or(running) != 0;
  }

  const RnnSample& s_;
  const RnnMatrixPlan& plan_;
  const RnnMatrixShared& shared_;
  const int thread_, warp_, hidden_, gates_, parameters_;
  bool draws_;                     // else it has units
  int begin_, end_;                // rows of the team
  int first_unit_, units_;
  int count_, tiles_;              // rows of the weight that this block multiplies by, and tiles of them
  float bias_;                     // of the parameter whose sum this thread completes
  int first_row_ = 0, rows_ = 0;   // that are under way
  uint32_t weights_[kTiles][kSteps][4];
};

__global__ void __launch_bounds__(kThreads, 1)
    rnn_sample_matrix_kernel(const RnnSample sample, const RnnMatrixPlan plan) {
  AR_FAST_SHARED(float, partial, [kWarps * kTiles * kTile * kColumns]);
  AR_FAST_SHARED(float, sums, [kRows * kMostWeights]);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  RnnMatrixBlock(sample, plan, {partial, sums}).run();
#endif
}

int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

// A state is exact in three bfloat16, and the instructions for these begin with sm_80. The registers of a block hold
// 128 rows of 512 weights: of one matrix, so of one layer, and all of out_weight, since one block draws.
const char* rnn_matrix_obstacle(const RnnSample& sample, const Device& device) {
  if (sample.storage != ScalarType::bfloat16) return "weights that are not bfloat16";
  if (device.capability < 8) return "a GPU below sm_80";
  if (sample.layers != 1) return "more than one layer";
  if (sample.hidden > kMostHidden) return "more than 512 units";
  if (sample.parameters > kMostWeights) return "more than 128 parameters";
  if (divided(sample.hidden, kMostWeights / sample.gates()) >= device.multiprocessors) return "too few multiprocessors";
  // Of one block a multiprocessor, there are at most as many as multiprocessors.
  if (resident_blocks(rnn_sample_matrix_kernel, kThreads) < 1) return "a block that no multiprocessor takes";
  return nullptr;
}

void rnn_matrix_cut(const RnnSample& sample, int64_t multiprocessors, RnnCut& cut) {
  const int64_t hidden = sample.hidden, pairs = divided(sample.draws.batch, kRows);
  const int64_t most_units = kMostWeights / sample.gates(), least_blocks = divided(hidden, most_units);
  cut = RnnCut{};
  cut.matrix = cut.weights_on_chip = cut.out_weight_on_chip = cut.parameters_on_chip = true;
  const int64_t teams = std::min(pairs, multiprocessors / (least_blocks + 1));
  cut.rows = divided(pairs, teams) * kRows;
  cut.teams = divided(sample.draws.batch, cut.rows);
  const int64_t units = divided(hidden, multiprocessors / cut.teams - 1);
  cut.units = std::min(most_units, std::max<int64_t>(kLeastUnits, units));
  cut.unit_blocks = divided(hidden, cut.units);
  cut.draw_blocks = 1;
  cut.padded = divided(hidden, kTile) * kTile;
}

cudaError_t rnn_sample_matrix(const RnnSample& sample, const RnnCut& cut, const RnnScratch& scratch,
                              cudaStream_t stream) {
  const RnnMatrixPlan plan{static_cast<int>(cut.rows),   static_cast<int>(cut.unit_blocks),
                           static_cast<int>(cut.units),  static_cast<int>(cut.padded),
                           static_cast<float*>(scratch.states), scratch.words, scratch.published};
  return launch({"rnn_sample_matrix", static_cast<unsigned>(cut.blocks()), kThreads, 0, stream, true},
                rnn_sample_matrix_kernel, sample, plan);
}

}  // namespace ar_fast::cuda
