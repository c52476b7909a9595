// Recurrent models: the contract of their sampling kernels on CPU and CUDA.
//
// There are L layers of H units. A weight has G gates, as in torch.nn; each gate has a row for each unit, and the rows
// of a gate are adjacent. At a position, x is the value before it (at the first position of a run there is none, and
// U x is zero):
//
//   a = U x + c                        in the first layer: x scales the one row of in_table, or selects its row
//   a = W h + b                        in the others, with the state h of the layer below
//   s = R k + d                        with k, the layer's own state before
//   gru        n = tanh(a_n + sigmoid(a_r + s_r) s_n), z = sigmoid(a_z + s_z), next state n + z (k - n)
//   lstm       next cell state sigmoid(a_f + s_f) cell + sigmoid(a_i + s_i) tanh(a_g + s_g),
//              next state sigmoid(a_o + s_o) tanh(next cell state)
//   rnn        next state tanh(a + s); rnn_relu: max(a + s, 0)
//   parameters = V h + out_bias        with the state h of the last layer
//
// Gates are in the order r, z, n and i, f, g, o. A finished row keeps its state, and its values stay as they are when a
// kernel begins. A row becomes finished when it draws stop_token, or when it has `limits` positions. The parameters are
// needed only for a row that draws: one that is neither finished nor known.
//
// The summation order of every product depends only on H, and on CUDA on the kernel that a model takes, not on the
// batch, the threads, or how calls are cut: a row's values and state have the same bits in all cases.
//
// Sources: Elman, "Finding structure in time", Cognitive Science 1990; Hochreiter and Schmidhuber, "Long short-term
// memory", Neural Computation 1997; Cho et al., EMNLP 2014, with the gates of cuDNN and torch.nn.
//
// Every pointer points to contiguous memory. `storage` is the type of the weights; all other real numbers have the
// compute type: double for float64 storage, float otherwise.
#pragma once

#include "draws.h"
#include "types.h"

namespace ar_fast {

enum class RnnCell : int32_t { gru = 0, lstm = 1, rnn = 2, rnn_relu = 3 };

AR_FAST_HOST_DEVICE constexpr int64_t rnn_gates(RnnCell cell) {
  return cell == RnnCell::gru ? 3 : cell == RnnCell::lstm ? 4 : 1;
}

constexpr int64_t rnn_most_layers = 16;

struct RnnLayer {
  const void* in_weight;           // W: [G H, H] storage; null in the first layer
  const void* in_bias;             // b: [G H] compute; null in the first layer
  const void* recurrent_weight;    // R: [G H, H] storage
  const void* recurrent_bias;      // d: [G H] compute
};

struct RnnSample {
  Draws draws;
  ScalarType storage;
  RnnCell cell;
  bool gathers;                    // x selects its row of in_table; else it scales the one row
  bool begins;                     // position start is the first of the run: last is not read
  int64_t layers;                  // L, at most rnn_most_layers
  int64_t hidden;                  // H
  int64_t parameters;              // K
  RnnLayer layer[rnn_most_layers];
  const void* in_table;            // U: [K, G H] compute if gathers, else [1, G H]
  const void* in_bias;             // c: [G H] or [B, G H] compute
  int64_t in_bias_stride;          // 0 for [G H], G H for [B, G H]
  const void* out_weight;          // V: [K, H] storage
  const void* out_bias;            // [K] compute
  const int64_t* limits;           // [B], positions counted from 0; null = none
  int64_t stop_token;              // -1 = none
  // These hold the state before position start, and after the kernel that after position stop - 1:
  void* state;                     // [L, B, H] compute
  void* cell_state;                // [L, B, H] compute; null except for lstm
  void* last;                      // [B] compute: the value at the position before
  uint8_t* finished;               // [B], 0 or 1; rows whose limit is reached at start are finished

  AR_FAST_HOST_DEVICE int64_t gates() const { return rnn_gates(cell); }
  AR_FAST_HOST_DEVICE int64_t filler() const { return stop_token < 0 ? 0 : stop_token; }
  // Whether a row is finished after it had `value` at a position.
  template <typename T>
  AR_FAST_HOST_DEVICE bool finishes(int64_t row, int64_t position, T value) const {
    return (stop_token >= 0 && value == static_cast<T>(stop_token) && !draws.is_known(row, position)) ||
           (limits != nullptr && limits[row] <= position + 1);
  }
};

}  // namespace ar_fast
