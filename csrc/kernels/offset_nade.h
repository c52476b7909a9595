// NADE with input weights tied by offset: the contract of its sampling kernels on CPU and CUDA.
//
// Variables lie on a grid of rows x columns pixels with C channels; position p is channel p % C of pixel p / C, pixels
// row by row. A pixel sees its neighbourhood: the `up` rows above, with `side` columns to each side, and in its own row
// the `side` pixels to the left. Each of these pixels is a tap; there are T = up (2 side + 1) + side taps, counted row
// by row. Let x be the values of the pixel at tap t (a tap outside the grid adds nothing). Then
//
//   a = in_bias + sum over taps t, channels s of x_s in_weight[row of (t, s)]
//   for channel s = 0 ... C-1:   h_1 = f(a),   h_l = f(c_l + A_l h_{l-1}) of each further layer l = 2 ... L,
//                                parameters = out_bias[rows] + out_weight[rows] h_L,
//                                a += x_s in_weight[row of (T, s)]
//
// The sum over the neighbourhood is computed once for all channels of a pixel, and each channel then adds itself. The
// row of (t, s) is (t C + s) values, with values = 1, and x scales it; for a categorical head it is
// (t C + s) values + x, with values = K.
//
// Every product of a value and the weights of a tap belongs to only one pixel, so a pixel costs T C + C - 1 rows, and
// no product could be reused from the pixel before. The order of the additions is fixed, so a row does not depend on
// batch, threads or how calls are cut.
//
// A pixel may be drawn as soon as its window is: the row above has to be `side` columns ahead. So pixels of several
// rows can be drawn at the same time, along a wavefront, with the same result.
//
// Every pointer points to contiguous memory. `storage` is the type of both weights; all other real numbers have the
// compute type: double for float64 storage, float otherwise.
#pragma once

#include "draws.h"
#include "types.h"

namespace ar_fast {

constexpr int64_t offset_nade_most_layers = 16;

// A hidden layer after the first.
struct OffsetNadeLayer {
  const void* weight;              // A transposed: [units of the layer before, units] storage
  const void* bias;                // c: [units] compute
  int64_t units;
};

struct OffsetNadeSample {
  Draws draws;
  ScalarType storage;
  Activation activation;
  bool gathers;                    // a value selects its row of in_weight; else it scales the one row
  int64_t rows, columns, channels; // of the grid; D = rows columns C
  int64_t up, side;
  int64_t hidden;                  // H, of the first layer
  int64_t layers;                  // after the first, at most offset_nade_most_layers
  OffsetNadeLayer layer[offset_nade_most_layers];
  int64_t values_per_input;        // rows of in_weight for each (tap, channel)
  int64_t parameters;              // K of each variable
  bool shared_output;              // out_weight has K rows per channel; else per variable
  const void* in_weight;           // [(T C + C - 1) values_per_input, H] storage
  const void* in_bias;             // [H] or [B, H] compute
  int64_t in_bias_stride;          // 0 for [H], H for [B, H]
  const void* out_weight;          // [C K or D K, units of the last layer] storage
  const void* out_bias;            // [C K or D K] compute

  // The values at positions start - reach ... start - 1, which a call can see, are stored before draws.values. If the
  // rows of out_weight are not shared, they are in the order draws.order too.

  // Of hidden layer l, counted from 0.
  AR_FAST_HOST_DEVICE int64_t units(int64_t l) const { return l == 0 ? hidden : layer[l - 1].units; }
  // Of the widest hidden layer.
  AR_FAST_HOST_DEVICE int64_t most_units() const {
    int64_t most = hidden;
    for (int64_t l = 0; l < layers; ++l) most = layer[l].units > most ? layer[l].units : most;
    return most;
  }
  AR_FAST_HOST_DEVICE int64_t taps() const { return up * (2 * side + 1) + side; }
  // How many positions back a variable can see.
  AR_FAST_HOST_DEVICE int64_t reach() const { return (up * columns + side) * channels + channels - 1; }
};

}  // namespace ar_fast
