// Sampling of recurrent models: one persistent kernel for all positions of a call. If a block's shared memory holds all
// weights, the rows are split among blocks that never wait for each other. Otherwise the units are split among the
// blocks of a cooperative grid. Each of them has its rows of the weights in shared memory, and they wait twice per
// position: unit blocks for the values, draw blocks for the states. Weights that do not fit are read from the L2 cache.
// Of bfloat16 weights, rnn_matrix.cu has a grid of its own.
//
// Designed for latency. A position of a grid is a chain: states arrive, parameters, draw, values arrive, gates. The
// product of a state with the recurrent weights, most of the arithmetic, needs no value: unit blocks compute it while
// the draw blocks draw (dense_products.h). A draw block has its random numbers before the states arrive, and computes
// log p after the value is on its way.
//
// Waiting for states: a unit block arrives by adding 1 to a counter after a barrier of its threads, with release; a
// block waits by reading the counter with acquire before a barrier. The counter only grows: stage n is complete when n
// times the number of unit blocks have arrived, and a block arrives at a stage only after it has seen that the previous
// stage is complete and, in the first layer, that all rows have their values.
// Waiting for values: each row has a word of 64 bits, which holds the number of its positions that are drawn, whether
// it is finished, and in its lower half a value of 32 bits. The warp that draws the row writes it with release, and who
// needs the value reads it with acquire until it has the number: a number and a value never come apart, and no counter
// is between them.
// States alternate between two buffers. A block that writes position p + 1 into the buffer of p - 1 has waited for the
// values of p, whose blocks have read p - 1, and for the states of p, whose blocks have read it too. A draw block
// without rows may fall behind, since nobody waits for it; it reads no states. What other blocks write is never read
// through the read-only cache.
#include "rnn_cuda.h"

#include <algorithm>

#include "dense_products.h"
#include "rnn_device.h"
#include "rnn_matrix.h"

namespace ar_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kChunkUnits = 32;    // units whose sums are kept until the gates are applied
constexpr int kChunkRows = 16;     // the same for rows of the batch, whose parameters are computed together too
constexpr int kLeastUnits = 4;     // units of a block of a grid
constexpr int kLeft = 1 << 30;     // arrived at the states: the unit blocks have left, since every row is finished
constexpr int64_t kMostParameterBytes = 32 * 1024;

// What a launch needs besides the sample.
template <typename T>
struct RnnPlan {
  int rows, unit_blocks, units, draw_blocks, padded;
  bool weights_on_chip, out_weight_on_chip;
  T* states;
  T* parameters;                   // null means in shared memory
  int* arrived;
  uint64_t* published;
};

template <typename S>
struct RnnShared {
  RnnBefore<Compute<S>>* before;   // [kChunkRows]
  Compute<S>* sums;                // [2, kChunkRows, units of a chunk, G]: from the state and from the input
  Compute<S>* parameters;          // [kChunkRows, K]
  S* weights;                      // [2 L - 1, units, G, padded]: recurrent, then input weights
  S* out_weight;                   // [K, padded]
};

template <typename S>
class RnnBlock {
 public:
  using T = Compute<S>;

  __device__ RnnBlock(const RnnSample& sample, const RnnPlan<T>& plan, const RnnShared<S>& shared)
      : s_(sample), draws_(sample.draws), plan_(plan), shared_(shared),
        thread_(static_cast<int>(threadIdx.x)), warp_(thread_ / kWarpSize),
        hidden_(static_cast<int>(sample.hidden)), gates_(static_cast<int>(sample.gates())),
        layers_(static_cast<int>(sample.layers)), parameters_(static_cast<int>(sample.parameters)) {
    const int per_team = plan.unit_blocks + plan.draw_blocks, team = static_cast<int>(blockIdx.x) / per_team;
    const int index = static_cast<int>(blockIdx.x) % per_team, batch = static_cast<int>(draws_.batch);
    alone_ = per_team == 1;
    first_row_ = team * plan.rows;
    rows_ = min(plan.rows, batch - first_row_);
    team_ = team;
    if (index < plan.unit_blocks) {
      first_unit_ = index * plan.units;
      units_ = min(plan.units, hidden_ - first_unit_);
    }
    if (alone_) {
      draw_begin_ = 0;
      draw_end_ = rows_;
    } else if (index >= plan.unit_blocks) {
      const int own = (rows_ + plan.draw_blocks - 1) / plan.draw_blocks, block = index - plan.unit_blocks;
      draw_begin_ = min(rows_, block * own);
      draw_end_ = min(rows_, draw_begin_ + own);
    }
    has_units_ = index < plan.unit_blocks;
    has_rows_ = alone_ || index >= plan.unit_blocks;
  }

  __device__ void run() {
    load_weights();
    const int count = static_cast<int>(draws_.stop - draws_.start);
    for (int step = 0; step < count; ++step) {
      if (has_units_) {
        for (int layer = 0; layer < layers_; ++layer) {
          if (!units(step, layer)) return leave(step);
        }
      }
      if (has_rows_ && !draw(step)) return;
    }
  }

 private:
  __device__ __forceinline__ RnnSizes sizes() const { return {hidden_, gates_, parameters_}; }

  // --- waiting

  __device__ __forceinline__ void states_are_there() const {
    __syncthreads();
    if (!alone_ && thread_ == 0) add_release(plan_.arrived + team_, 1);
  }

  // Waits until all unit blocks have computed `stages` layers since the start; false if they have left.
  __device__ __forceinline__ bool wait_for_states(int stages) const {
    if (alone_) return true;
    int arrived = 0;
    if (thread_ == 0) {
      while ((arrived = load_acquire(plan_.arrived + team_)) < stages * plan_.unit_blocks) {
      }
    }
    return __syncthreads_or(arrived >= kLeft) == 0;
  }

  // Waits until a row of the team has its value before this step.
  __device__ __forceinline__ RnnBefore<T> wait_for_value(int step, int row) const {
    const int batch_row = first_row_ + row;
    // The draw blocks write these only after all unit blocks have arrived at the states of the first step.
    if (alone_ || step == 0) return {static_cast<const T*>(s_.last)[batch_row], s_.finished[batch_row]};
    uint64_t word = 0;
    do {
      word = load_acquire(plan_.published + batch_row);
    } while (rnn_number(word) < step);
    RnnBefore<T> before = rnn_before<T>(word);
    if constexpr (sizeof(T) != 4) before.value = static_cast<const T*>(s_.last)[batch_row];
    return before;
  }

  // By one thread, after it has written `last`.
  __device__ __forceinline__ void publish(int step, int batch_row, T value, bool finished) const {
    if (!alone_) store_release(plan_.published + batch_row, rnn_word(step + 1, value, finished));
  }

  // Waits until all values before this step are there; false if every row of the team is finished. The first rows' are
  // in shared memory then. Only unit blocks call it: no row finishes at this step before all of them have looked.
  __device__ __forceinline__ bool wait_for_values(int step) const {
    bool running = false;
    for (int row = thread_; row < rows_; row += kThreads) {
      const RnnBefore<T> before = wait_for_value(step, row);
      running = running || before.finished == 0;
      if (row < kChunkRows) shared_.before[row] = before;
    }
    return __syncthreads_or(running) != 0;
  }

  // --- products

  __device__ __forceinline__ T* state(int buffer, int layer, int row) const {
    return plan_.states + ((static_cast<int64_t>(buffer) * layers_ + layer) * draws_.batch + first_row_ + row) *
                              plan_.padded;
  }

  __device__ void load_rows(const void* from, int first, int count, int gates, S* to) const {
    const S* const weight = static_cast<const S*>(from);
    const int64_t elements = static_cast<int64_t>(count) * gates * plan_.padded;
    for (int64_t i = thread_; i < elements; i += kThreads) {
      const int k = static_cast<int>(i % plan_.padded), row = static_cast<int>(i / plan_.padded);
      const int64_t source = static_cast<int64_t>(row % gates) * hidden_ + first + row / gates;
      to[i] = k < hidden_ ? weight[source * hidden_ + k] : S{};
    }
  }

  __device__ void load_weights() const {
    if (plan_.weights_on_chip) {
      const int64_t size = static_cast<int64_t>(plan_.units) * gates_ * plan_.padded;
      for (int layer = 0; has_units_ && layer < layers_; ++layer) {
        load_rows(s_.layer[layer].recurrent_weight, first_unit_, units_, gates_, shared_.weights + layer * size);
        if (layer == 0) continue;
        load_rows(s_.layer[layer].in_weight, first_unit_, units_, gates_,
                  shared_.weights + (layers_ + layer - 1) * size);
      }
    }
    if (plan_.out_weight_on_chip && has_rows_) load_rows(s_.out_weight, 0, parameters_, 1, shared_.out_weight);
    __syncthreads();
  }

  // --- units

  // The sums of units [unit, unit + count) of this block with the `rows` rows from `row` on. `number` is the number of
  // the weight in shared_.weights.
  __device__ void unit_products(const void* weight, int number, int unit, int count, int buffer, int of_layer, int row,
                                int rows, T* sums) const {
    const auto x_at = [&](int r) { return state(buffer, of_layer, row + r); };
    if (plan_.weights_on_chip) {
      const int64_t first = (static_cast<int64_t>(number) * plan_.units + unit) * gates_ * plan_.padded;
      const S* const own = shared_.weights + first;
      const auto weight_at = [&](int w) { return own + static_cast<int64_t>(w) * plan_.padded; };
      dense_products<S, true>(warp_, kWarps, hidden_, count * gates_, rows, true, weight_at, x_at, sums,
                              count * gates_);
    } else {
      const S* const all = static_cast<const S*>(weight);
      const auto weight_at = [&](int w) {
        return all + (static_cast<int64_t>(w % gates_) * hidden_ + first_unit_ + unit + w / gates_) * hidden_;
      };
      dense_products<S, false>(warp_, kWarps, hidden_, count * gates_, rows, vectors_fit(all, hidden_), weight_at,
                               x_at, sums, count * gates_);
    }
  }

  // Computes this block's units of a layer. False if every row is finished.
  __device__ bool units(int step, int layer) {
    const RnnLayer& own = s_.layer[layer];
    wait_for_states(step * layers_ + layer);
    const int now = step % 2;
    for (int row = 0; row < rows_; row += kChunkRows) {
      const int rows = min(kChunkRows, rows_ - row);
      for (int unit = 0; unit < units_; unit += kChunkUnits) {
        const int count = min(kChunkUnits, units_ - unit);
        T* const from_state = shared_.sums;
        T* const from_input = shared_.sums + kChunkRows * count * gates_;
        // A loop, so that the products are compiled only once.
        for (int input = 0; input <= (layer > 0 ? 1 : 0); ++input) {
          unit_products(input ? own.in_weight : own.recurrent_weight, input ? layers_ + layer - 1 : layer, unit, count,
                        input ? 1 - now : now, layer - input, row, rows, input ? from_input : from_state);
        }
        // The first round's inputs are read while the values are on their way.
        RnnGateInputs<T> inputs{};
        if (thread_ < rows * count) inputs = gate_inputs(step, layer, row + thread_ / count, unit + thread_ % count);
        if (layer == 0 && row == 0 && unit == 0) {
          if (!wait_for_values(step)) return false;
        } else {
          if (unit == 0 && thread_ < rows) shared_.before[thread_] = wait_for_value(step, row + thread_);
          __syncthreads();
        }
        for (int i = thread_; i < rows * count; i += kThreads) {
          const int of_row = row + i / count, of_unit = unit + i % count;
          if (i != thread_) inputs = gate_inputs(step, layer, of_row, of_unit);
          const int u = first_unit_ + of_unit;
          rnn_gates(s_, sizes(), step, layer, first_row_ + of_row, u, inputs, shared_.before[i / count],
                    from_state + i * gates_, from_input + i * gates_, state(1 - step % 2, layer, of_row) + u);
        }
        __syncthreads();
      }
    }
    states_are_there();
    return true;
  }

  // Of a unit of this block, in a row of the team.
  __device__ __forceinline__ RnnGateInputs<T> gate_inputs(int step, int layer, int row, int unit) const {
    const int u = first_unit_ + unit;
    return rnn_gate_inputs(s_, sizes(), layer, first_row_ + row, u, state(step % 2, layer, row) + u);
  }

  // Every row is finished before this step: both buffers get the current state.
  __device__ void leave(int step) const {
    for (int layer = 0; layer < layers_; ++layer) {
      for (int i = thread_; i < rows_ * units_; i += kThreads) {
        const int row = i / units_, u = first_unit_ + i % units_;
        state(1 - step % 2, layer, row)[u] = state(step % 2, layer, row)[u];
      }
    }
    if (!alone_ && first_unit_ == 0 && thread_ == 0) add_release(plan_.arrived + team_, kLeft);
  }

  // --- rows

  // Whether one of these rows of the team draws: a row that is neither finished nor known.
  __device__ __forceinline__ bool any_draws(int first, int rows, int64_t p) const {
    bool any = false;
#pragma unroll 1
    for (int row = first_row_ + first; row < first_row_ + first + rows; ++row) {
      any = any || (s_.finished[row] == 0 && !draws_.is_known(row, p));
    }
    return any;
  }

  // Draws the values of this block's rows at a step; false if the unit blocks have left.
  __device__ bool draw(int step) {
    const int64_t p = draws_.start + step;
    RnnAhead<T> ahead;
    if (draw_begin_ + warp_ < draw_end_) ahead = rnn_look_ahead<T>(s_, sizes(), first_row_ + draw_begin_ + warp_, p);
    bool any = any_draws(draw_begin_, min(kChunkRows, draw_end_ - draw_begin_), p);
    if (!wait_for_states((step + 1) * layers_)) return false;
    for (int first = draw_begin_; first < draw_end_; first += kChunkRows) {
      const int rows = min(kChunkRows, draw_end_ - first);
      T* const parameters = plan_.parameters == nullptr
                                ? shared_.parameters
                                : plan_.parameters + static_cast<int64_t>(first_row_ + first) * parameters_;
      if (first != draw_begin_) any = any_draws(first, rows, p);
      if (any) {
        const auto x_at = [&](int r) { return state(1 - step % 2, layers_ - 1, first + r); };
        if (plan_.out_weight_on_chip) {
          const auto weight_at = [&](int w) { return shared_.out_weight + static_cast<int64_t>(w) * plan_.padded; };
          if (rows == 1) {
            dense_products<S, true, 1>(warp_, kWarps, hidden_, parameters_, rows, true, weight_at, x_at, parameters,
                                       parameters_);
          } else {
            dense_products<S, true>(warp_, kWarps, hidden_, parameters_, rows, true, weight_at, x_at, parameters,
                                    parameters_);
          }
        } else {
          const S* const all = static_cast<const S*>(s_.out_weight);
          const auto weight_at = [&](int w) { return all + static_cast<int64_t>(w) * hidden_; };
          dense_products<S, false>(warp_, kWarps, hidden_, parameters_, rows, vectors_fit(all, hidden_), weight_at,
                                   x_at, parameters, parameters_);
        }
      }
      __syncthreads();
      for (int r = warp_; r < rows; r += kWarps) {
        const int row = first_row_ + first + r;
        if (first + r != draw_begin_ + warp_) ahead = rnn_look_ahead<T>(s_, sizes(), row, p);
        rnn_draw_row(s_, sizes(), row, p, ahead, parameters + static_cast<int64_t>(r) * parameters_,
                     [&](T value, bool finished) { publish(step, row, value, finished); });
      }
      __syncthreads();
    }
    return true;
  }

  const RnnSample& s_;
  const Draws& draws_;
  const RnnPlan<T>& plan_;
  const RnnShared<S>& shared_;
  const int thread_, warp_, hidden_, gates_, layers_, parameters_;
  bool alone_, has_units_, has_rows_;
  int team_, first_row_, rows_;    // rows of the team
  int first_unit_ = 0, units_ = 0; // units of this block
  int draw_begin_ = 0, draw_end_ = 0;
};

// The parts of a block's shared memory, in bytes.
struct RnnBytes {
  int64_t before, sums, parameters, weights, out_weight;
};

int64_t aligned(int64_t bytes) { return (bytes + 127) / 128 * 128; }

template <typename S>
__global__ void __launch_bounds__(kThreads, 1)
    rnn_sample_kernel(const RnnSample sample, const RnnPlan<Compute<S>> plan, const RnnBytes bytes) {
  AR_FAST_DYNAMIC_SHARED(unsigned char, memory);
  RnnShared<S> shared;
  shared.before = reinterpret_cast<RnnBefore<Compute<S>>*>(memory);
  shared.sums = reinterpret_cast<Compute<S>*>(memory + bytes.before);
  shared.parameters = reinterpret_cast<Compute<S>*>(memory + bytes.before + bytes.sums);
  // In a grid no block has both weights.
  unsigned char* const weights = memory + bytes.before + bytes.sums + bytes.parameters;
  shared.weights = reinterpret_cast<S*>(weights);
  shared.out_weight = reinterpret_cast<S*>(plan.draw_blocks == 0 ? weights + bytes.weights : weights);
  RnnBlock<S>(sample, plan, shared).run();
}

int64_t compute_bytes(const RnnSample& sample) { return sample.storage == ScalarType::float64 ? 8 : 4; }
int64_t storage_bytes(const RnnSample& sample) {
  return sample.storage == ScalarType::float64 ? 8 : sample.storage == ScalarType::float32 ? 4 : 2;
}

// The bytes of a block with everything in shared memory.
RnnBytes bytes_of(const RnnSample& sample, const RnnCut& cut) {
  const int64_t compute = compute_bytes(sample), storage = storage_bytes(sample), gates = sample.gates();
  RnnBytes bytes;
  bytes.before = aligned(kChunkRows * (compute == 8 ? sizeof(RnnBefore<double>) : sizeof(RnnBefore<float>)));
  bytes.sums = aligned(2 * kChunkRows * std::min<int64_t>(kChunkUnits, cut.units) * gates * compute);
  bytes.parameters = aligned(kChunkRows * sample.parameters * compute);
  if (bytes.parameters > kMostParameterBytes) bytes.parameters = 0;
  bytes.weights = aligned((2 * sample.layers - 1) * cut.units * gates * cut.padded * storage);
  bytes.out_weight = aligned(sample.parameters * cut.padded * storage);
  return bytes;
}

RnnBytes bytes_kept(const RnnSample& sample, const RnnCut& cut) {
  RnnBytes bytes = bytes_of(sample, cut);
  if (!cut.weights_on_chip) bytes.weights = 0;
  if (!cut.out_weight_on_chip) bytes.out_weight = 0;
  return bytes;
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

cudaError_t rnn_cuda_cut(const RnnSample& sample, RnnTeams teams, RnnCut& cut) {
  cuda::Device device{};
  const cudaError_t error = cuda::current_device(device);
  if (error != cudaSuccess) return error;
  const int64_t batch = sample.draws.batch, processors = device.multiprocessors;
  const int64_t vector = 16 / cuda::storage_bytes(sample);
  cut = RnnCut{};
  cut.padded = (sample.hidden + vector - 1) / vector * vector;
  cut.teams = std::min(batch, processors);
  cut.rows = (batch + cut.teams - 1) / cut.teams;
  cut.teams = (batch + cut.rows - 1) / cut.rows;
  cut.unit_blocks = 1;
  cut.units = sample.hidden;
  const cuda::RnnBytes alone = cuda::bytes_of(sample, cut);
  cut.parameters_on_chip = alone.parameters > 0;
  const int64_t others = alone.before + alone.sums + alone.parameters;
  const bool fits = others + alone.weights + alone.out_weight <= device.shared_bytes;
  if (teams == RnnTeams::one_block || processors < 2 || (fits && teams == RnnTeams::automatic)) {
    cut.weights_on_chip = cut.out_weight_on_chip = fits;
    cut.shared_bytes = others + (fits ? alone.weights + alone.out_weight : 0);
    return cudaSuccess;
  }
  if (teams == RnnTeams::automatic) {
    const char* const obstacle = cuda::rnn_matrix_obstacle(sample, device);
    if (obstacle == nullptr) {
      cuda::rnn_matrix_cut(sample, processors, cut);
      return cudaSuccess;
    }
    cut.obstacle = obstacle;
  }
  cut.teams = 1;
  cut.rows = batch;
  cut.draw_blocks = std::min(batch, std::max<int64_t>(1, processors / 4));
  cut.units = std::max<int64_t>(cuda::kLeastUnits, (sample.hidden + processors - cut.draw_blocks - 1) /
                                                       (processors - cut.draw_blocks));
  cut.unit_blocks = (sample.hidden + cut.units - 1) / cut.units;
  const cuda::RnnBytes grid = cuda::bytes_of(sample, cut);
  const int64_t of_grid = grid.before + grid.sums + grid.parameters;
  cut.weights_on_chip = of_grid + grid.weights <= device.shared_bytes;
  cut.out_weight_on_chip = of_grid + grid.out_weight <= device.shared_bytes;
  cut.shared_bytes = of_grid + std::max(cut.weights_on_chip ? grid.weights : 0,
                                        cut.out_weight_on_chip ? grid.out_weight : 0);
  return cudaSuccess;
}

cudaError_t rnn_sample_cuda(const RnnSample& sample, const RnnCut& cut, const RnnScratch& scratch,
                            cudaStream_t stream) {
  if (cut.matrix) return cuda::rnn_sample_matrix(sample, cut, scratch, stream);
  return cuda::dispatch_storage(sample.storage, [&](auto storage) {
    using S = decltype(storage);
    using T = cuda::Compute<S>;
    const cuda::RnnPlan<T> plan{static_cast<int>(cut.rows),        static_cast<int>(cut.unit_blocks),
                                static_cast<int>(cut.units),       static_cast<int>(cut.draw_blocks),
                                static_cast<int>(cut.padded),      cut.weights_on_chip,
                                cut.out_weight_on_chip,            static_cast<T*>(scratch.states),
                                static_cast<T*>(scratch.parameters), scratch.arrived, scratch.published};
    return cuda::launch({"rnn_sample", static_cast<unsigned>(cut.blocks()), cuda::kThreads,
                         static_cast<size_t>(cut.shared_bytes), stream, cut.draw_blocks > 0},
                        cuda::rnn_sample_kernel<S>, sample, plan, cuda::bytes_kept(sample, cut));
  });
}

}  // namespace ar_fast
