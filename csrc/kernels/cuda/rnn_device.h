// What the kernels of recurrent sampling share: the gates of a unit, the draw of a row, and the word by which a value
// comes from the block that draws it.
#pragma once

#include "draws_device.h"
#include "rnn_cuda.h"

namespace ar_fast::cuda {

constexpr int kBiasesAhead = 3;    // of a lane that draws: biases that it reads before the states arrive

// The numbers of the sample that index most.
struct RnnSizes {
  int hidden, gates, parameters;
};

// What a unit reads of a row at a position.
template <typename T>
struct RnnBefore {
  T value;                         // the value before
  int finished;
};

// What the gates of a unit read besides the products and the value before: it is there before the value is.
template <typename T>
struct RnnGateInputs {
  T before, cell, recurrent_bias[4], in_bias[4];
};

template <typename T>
__device__ __forceinline__ T* rnn_cell_state(const RnnSample& s, const RnnSizes& sizes, int layer, int batch_row,
                                             int u) {
  return static_cast<T*>(s.cell_state) + (layer * s.draws.batch + batch_row) * sizes.hidden + u;
}

// Of unit u in a row, whose state it had before. Gates that the cell lacks read the last one again, so that all loads
// are under way at once.
template <typename T>
__device__ __forceinline__ RnnGateInputs<T> rnn_gate_inputs(const RnnSample& s, const RnnSizes& sizes, int layer,
                                                            int batch_row, int u, const T* before) {
  const RnnLayer& own = s.layer[layer];
  const T* const in_bias = layer > 0 ? static_cast<const T*>(own.in_bias)
                                     : static_cast<const T*>(s.in_bias) + batch_row * s.in_bias_stride;
  RnnGateInputs<T> inputs;
  inputs.before = *before;
  inputs.cell = s.cell == RnnCell::lstm ? *rnn_cell_state<T>(s, sizes, layer, batch_row, u) : T(0);
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    const int64_t at = static_cast<int64_t>(min(g, sizes.gates - 1)) * sizes.hidden + u;
    inputs.recurrent_bias[g] = static_cast<const T*>(own.recurrent_bias)[at];
    inputs.in_bias[g] = in_bias[at];
  }
  return inputs;
}

// Writes the next state of that unit, from the sums of its gates, and its cell state.
template <typename T>
__device__ __forceinline__ void rnn_gates(const RnnSample& s, const RnnSizes& sizes, int step, int layer, int batch_row,
                                          int u, const RnnGateInputs<T>& inputs, const RnnBefore<T>& of_row,
                                          const T* from_state, const T* from_input, T* next) {
  const T before = inputs.before, value = of_row.value;
  const bool none = s.begins && step == 0;
  const bool outside = s.gathers && !none && !is_category(value, sizes.parameters);
  const int64_t entry = none || outside || !s.gathers ? 0 : static_cast<int64_t>(value);
  const T* const in_table = static_cast<const T*>(s.in_table) + entry * sizes.gates * sizes.hidden + u;
  T a[4], sums[4], table[4] = {};
  if (layer == 0) {
#pragma unroll
    for (int g = 0; g < 4; ++g) table[g] = in_table[static_cast<int64_t>(min(g, sizes.gates - 1)) * sizes.hidden];
  }
  if (of_row.finished != 0) {
    *next = before;
    return;
  }
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    const int gate = min(g, sizes.gates - 1);
    sums[g] = inputs.recurrent_bias[g] + from_state[gate];
    if (layer > 0) {
      a[g] = inputs.in_bias[g] + from_input[gate];
    } else {
      const T entry_of_gate = outside ? not_a_number<T> : table[g];
      a[g] = none ? inputs.in_bias[g] : fma(s.gathers ? T(1) : value, entry_of_gate, inputs.in_bias[g]);
    }
  }
  if (s.cell == RnnCell::gru) {
    const T r = sigmoid(a[0] + sums[0]), z = sigmoid(a[1] + sums[1]), n = tanh_of(fma(r, sums[2], a[2]));
    *next = fma(z, before - n, n);
  } else if (s.cell == RnnCell::lstm) {
    const T i = sigmoid(a[0] + sums[0]), f = sigmoid(a[1] + sums[1]), g = tanh_of(a[2] + sums[2]);
    const T o = sigmoid(a[3] + sums[3]), kept = fma(i, g, f * inputs.cell);
    *rnn_cell_state<T>(s, sizes, layer, batch_row, u) = kept;
    *next = o * tanh_of(kept);
  } else {
    const T sum = a[0] + sums[0];
    *next = s.cell == RnnCell::rnn ? tanh_of(sum) : sum < T(0) ? T(0) : sum;
  }
}

// The word of a row's value: a number, whether the row is finished, and in the lower half the value if it has 32 bits.
template <typename T>
__device__ __forceinline__ uint64_t rnn_word(int number, T value, bool finished) {
  uint32_t bits = 0;
  if constexpr (sizeof(T) == 4) memcpy(&bits, &value, 4);
  return (2 * static_cast<uint64_t>(number) + (finished ? 1 : 0)) << 32 | bits;
}
__device__ __forceinline__ int rnn_number(uint64_t word) { return static_cast<int>(word >> 33); }
template <typename T>
__device__ __forceinline__ RnnBefore<T> rnn_before(uint64_t word) {
  RnnBefore<T> before{};
  if constexpr (sizeof(T) == 4) {
    const uint32_t bits = static_cast<uint32_t>(word);
    memcpy(&before.value, &bits, 4);
  }
  before.finished = static_cast<int>(word >> 32 & 1);
  return before;
}

// What a draw needs besides the states; read or computed while they are on their way.
template <typename T>
struct RnnAhead {
  DrawNoise noise;
  T biases[kBiasesAhead];          // of parameters lane + n * kWarpSize
  bool finished;
};

template <typename T>
__device__ __forceinline__ RnnAhead<T> rnn_look_ahead(const RnnSample& s, const RnnSizes& sizes, int row, int64_t p) {
  RnnAhead<T> ahead;
  ahead.noise = draw_noise(s.draws, row, p);
#pragma unroll
  for (int n = 0; n < kBiasesAhead; ++n) {
    const int k = lane_id() + n * kWarpSize;
    ahead.biases[n] = static_cast<const T*>(s.out_bias)[k < sizes.parameters ? k : 0];
  }
  ahead.finished = s.finished[row] != 0;
  return ahead;
}

// One warp draws a row. parameters: without out_bias; with `few` they have it, and are as draw_category_of_few takes
// them. publish(value, finished) is called by one lane, as early as can be. Whether the row is finished is returned to
// that lane.
template <bool few = false, typename T, typename Publish>
__device__ __forceinline__ bool rnn_draw_row(const RnnSample& s, const RnnSizes& sizes, int row, int64_t p,
                                             const RnnAhead<T>& ahead, T* parameters, const Publish& publish) {
  const Draws& draws = s.draws;
  const int count = sizes.parameters;
  if (ahead.finished) {
    if (lane_id() == 0) publish(T(0), true);
    return true;
  }
  const T* const known = draws.known_value<T>(row, p);
  T value;
  if (known != nullptr) {
    value = *known;
  } else {
    if constexpr (!few) {
#pragma unroll
      for (int n = 0; n < kBiasesAhead; ++n) {
        const int k = lane_id() + n * kWarpSize;
        if (k < count) parameters[k] += ahead.biases[n];
      }
      for (int k = lane_id() + kBiasesAhead * kWarpSize; k < count; k += kWarpSize) {
        parameters[k] += static_cast<const T*>(s.out_bias)[k];
      }
      __syncwarp();
    }
    value = draw_value<true, few>(draws, row, p, parameters, count, ahead.noise);
  }
  // All lanes have read `finished` before one writes it.
  __syncwarp();
  bool finishes = false;
  if (lane_id() == 0) {
    finishes = s.finishes(row, p, value);
    static_cast<T*>(s.last)[row] = value;
    publish(value, finishes);
    draws.values_of<T>(row)[p] = value;
    if (finishes) s.finished[row] = 1;
  }
  if (known != nullptr) return finishes;
  const double log_prob = drawn_log_prob(draws, p, parameters, count, value);
  if (lane_id() == 0) draws.log_prob[row] += log_prob;
  return finishes;
}

}  // namespace ar_fast::cuda
