// NADE with input weights tied by offset: the contract of its sampling kernels on CPU and CUDA.
//
// Variables lie on a grid of rows x columns pixels with C channels; position p is channel p % C of pixel p / C, pixels
// row by row. A pixel sees its neighbourhood: the `up` rows above, with `side` columns to each side, and in its own row
// the `side` pixels to the left. Each of these pixels is a tap; there are T = up (2 side + 1) + side taps, counted row
// by row. Let x be the values of the pixel at tap t (a tap outside the grid adds nothing). Then
//
//   a = in_bias + sum over taps t, channels s of x_s in_weight[row of (t, s)]
//   for channel s = 0 ... C-1:   parameters = out_bias[rows] + out_weight[rows] f(a),
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
// Every pointer points to contiguous memory. `storage` is the type of both weights; all other real numbers have the
// compute type: double for float64 storage, float otherwise.
#pragma once

#include "draws.h"
#include "types.h"

namespace ar_fast {

struct OffsetNadeSample {
  Draws draws;
  ScalarType storage;
  Activation activation;
  bool gathers;                    // a value selects its row of in_weight; else it scales the one row
  int64_t rows, columns, channels; // of the grid; D = rows columns C
  int64_t up, side;
  int64_t hidden;                  // H
  int64_t values_per_input;        // rows of in_weight for each (tap, channel)
  int64_t parameters;              // K of each variable
  bool shared_output;              // out_weight has K rows per channel; else per variable
  const void* in_weight;           // [(T C + C - 1) values_per_input, H] storage
  const void* in_bias;             // [H] or [B, H] compute
  int64_t in_bias_stride;          // 0 for [H], H for [B, H]
  const void* out_weight;          // [C K or D K, H] storage
  const void* out_bias;            // [C K or D K] compute

  // The values at positions start - reach ... start - 1, which a call can see, are stored before draws.values. If the
  // rows of out_weight are not shared, they are in the order draws.order too.

  AR_FAST_HOST_DEVICE int64_t taps() const { return up * (2 * side + 1) + side; }
  // How many positions back a variable can see.
  AR_FAST_HOST_DEVICE int64_t reach() const { return (up * columns + side) * channels + channels - 1; }
};

}  // namespace ar_fast
