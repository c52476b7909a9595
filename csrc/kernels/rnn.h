// Recurrent models: the contract of their sampling kernels, CPU and CUDA.
//
// L layers of H units; every gate has a row of a weight for each unit, the rows of a gate together, G gates as in
// torch.nn. At a position, with x the value before it (none at the first position of a run, where U x is zero),
//
//   a = U x + c                        of the first layer: x scales the one row of in_table, or gathers its row
//   a = W h + b, h of the layer below  of the others
//   s = R k + d, k the layer's own state before
//   gru        n = tanh(a_n + sigmoid(a_r + s_r) s_n), z = sigmoid(a_z + s_z), next state n + z (k - n)
//   lstm       next cell state sigmoid(a_f + s_f) cell + sigmoid(a_i + s_i) tanh(a_g + s_g),
//              next state sigmoid(a_o + s_o) tanh(next cell state)
//   rnn        next state tanh(a + s); rnn_relu: max(a + s, 0)
//   parameters = V h + out_bias, h of the last layer
//
// Gates lie as r, z, n and i, f, g, o. A row that is finished keeps all that it has, and its values stay as they are
// when a kernel begins; it becomes so by drawing stop_token, or where it has `limits` positions. The parameters are
// needed only where a row draws: neither finished nor known.
//
// Every product is summed in an order that H alone fixes, whatever the batch, the threads, and where a call is cut: a
// row's values and state are the same bits in any of them.
//
// Sources: Elman, "Finding structure in time", Cognitive Science 1990; Hochreiter and Schmidhuber, "Long short-term
// memory", Neural Computation 1997; Cho et al., EMNLP 2014, with the gates of cuDNN and torch.nn.
//
// Every pointer is to contiguous memory. `storage` is the type of the weights; everything else that is real has the
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
  bool gathers;                    // x gathers its row of in_table; else it scales the one row
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
  // Before the position start, and when the kernel is done after position stop - 1:
  void* state;                     // [L, B, H] compute
  void* cell_state;                // [L, B, H] compute; null but for lstm
  void* last;                      // [B] compute: the value at the position before
  uint8_t* finished;               // [B], 0 or 1; rows whose limit is reached at start are finished

  AR_FAST_HOST_DEVICE int64_t gates() const { return rnn_gates(cell); }
  AR_FAST_HOST_DEVICE int64_t filler() const { return stop_token < 0 ? 0 : stop_token; }
  // Whether a row that had `value` at a position is finished after it.
  template <typename T>
  AR_FAST_HOST_DEVICE bool finishes(int64_t row, int64_t position, T value) const {
    return (stop_token >= 0 && value == static_cast<T>(stop_token) && !draws.is_known(row, position)) ||
           (limits != nullptr && limits[row] <= position + 1);
  }
};

}  // namespace ar_fast
