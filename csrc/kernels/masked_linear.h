// Masked linear maps: the contract of their kernels on CPU and CUDA.
//
//   y = f(x (W * M)^T + b),    dX = dY (W * M),    dW = (dY^T X) * M
//
// Masked weights have no effect whatever they hold (NaN included), and their gradient is exactly zero.
// A mask is given by one of two plans:
// - nested: the sets of inputs that the rows see are nested. In the column order `columns`, row o sees the first
//   extents[o] inputs; `rows` lists the rows by ascending extent. If columns or rows is null, they are sorted already.
// - blocks: any mask. `dense` is the mask; tiles[r, c] says whether the square of tile_size rows and columns is
//   empty (0), full (1) or mixed (2).
// Accumulation is in float for 16-bit and float32 storage, in double for float64. Products are exact, except that
// `tf32` asks for rounded operands.
#pragma once

#include "types.h"

namespace ar_fast {

constexpr int64_t mask_tile_size = 64;
// What the host knows of a staircase are its extents at the edges of so many blocks of rows at most.
constexpr int64_t mask_most_blocks = 16;

struct MaskPlan {
  int64_t out_features;            // O
  int64_t in_features;             // I
  const int32_t* extents;          // [O]; null for the blocks plan
  const int32_t* rows;             // [O] or null
  const int32_t* columns;          // [I] or null
  const int32_t* tiles;            // [ceil(O / mask_tile_size), ceil(I / mask_tile_size)]; null for the nested plan
  const uint8_t* dense;            // [O, I] 0 or 1; null for the nested plan
};

// All matrices are row major with unit column stride; *_stride is the distance between rows in elements.
struct MaskedLinear {
  ScalarType storage;              // of every matrix and of bias
  bool tf32;                       // float32 on CUDA: operands may be rounded to 10 bits of fraction; bias never is
  int64_t batch;                   // B
  MaskPlan mask;
  const void* input;               // [B, I]; for the gradient of input: null
  int64_t input_stride;
  const void* weight;              // [O, I] contiguous; for the gradient of weight: null
  const void* bias;                // [O] or null; forward only
  Activation activation;        // f; forward only
  const void* grad_output;         // [B, O]; null in forward
  int64_t grad_output_stride;
  void* output;                    // forward [B, O], grad_input [B, I], grad_weight [O, I]: contiguous, overwritten
};

}  // namespace ar_fast
