// What the product kernels of masked_linear share: six units, whose weights are broadcast, times a tile of lanes in
// registers.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "masked_gemm_cpu.h"
#include "masked_linear_cpu.h"
#include "transpose.h"
#include "vec_math.h"

namespace ar_fast {
namespace CPU_CAPABILITY {
namespace {

template <typename Compute>
using Vector = at::vec::Vectorized<Compute>;

// Six units by four vectors fill the 32 registers of AVX-512; six by two fill the 16 of AVX2.
constexpr int units_together = masked_gemm_rows;
#if defined(CPU_CAPABILITY_AVX512)
constexpr int most_vectors = 4;
#else
constexpr int most_vectors = 2;
#endif
// Steps between two updates of the accumulators: a tile's chunk stays in L2, the chunk of the weights in L1.
constexpr int64_t chunk_steps = 512;

template <typename Compute>
constexpr int64_t tile_width() {
  return most_vectors * Vector<Compute>::size();
}

// Where the operands of step s are:
//   contiguous   unit[j][s], row s of the tile
//   gathered     unit[j][index[s]], row s
//   indexed      unit[j][index[s]], row index[s]
enum class Access { contiguous, gathered, indexed };

template <typename Compute>
struct Weights {
  // Units `unit_stride` apart; if there are fewer than six, the last one is repeated. All take part in every step.
  AR_FAST_INLINE Weights(const Compute* first, int64_t unit_stride, int units) {
    for (int j = 0; j < units_together; ++j) unit[j] = first + std::min(j, units - 1) * unit_stride;
  }

  const Compute* unit[units_together];
  const int32_t* index = nullptr;
  // Unit j takes part in the steps before end[j]; all units take part in the steps before all_end.
  int64_t all_end = std::numeric_limits<int64_t>::max();
  int64_t end[units_together];
};

// sums[j][lane] += sum over steps of weights[j][s] tile[s][lane], or = if `fresh`; rows of the tile are `stride`
// apart.
template <int Vectors, Access access, typename Compute>
void multiply(const Weights<Compute>& weights, const Compute* tile, int64_t stride, int64_t steps, Compute* const* sums,
              int units, bool fresh) {
  using Vec = Vector<Compute>;
  constexpr int lanes = Vec::size();
  Vec total[units_together][Vectors];
#pragma GCC unroll 6
  for (int j = 0; j < units_together; ++j) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) total[j][v] = Vec(Compute(0));
  }
  const Compute *w0 = weights.unit[0], *w1 = weights.unit[1], *w2 = weights.unit[2], *w3 = weights.unit[3],
                *w4 = weights.unit[4], *w5 = weights.unit[5];
  const auto step = [&](int64_t s, auto ragged) __attribute__((always_inline)) {
    const int64_t at = access == Access::contiguous ? s : weights.index[s];
    const int64_t row = access == Access::indexed ? at : s;
    Vec x[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) x[v] = Vec::loadu(tile + row * stride + v * lanes);
    Compute w[units_together] = {w0[at], w1[at], w2[at], w3[at], w4[at], w5[at]};
#pragma GCC unroll 6
    for (int j = 0; j < units_together; ++j) {
      // A masked weight is read, but its value is discarded.
      if constexpr (ragged) w[j] = s < weights.end[j] ? w[j] : Compute(0);
      const Vec factor(w[j]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) total[j][v] = at::vec::fmadd(factor, x[v], total[j][v]);
    }
  };
  const int64_t full = std::min(weights.all_end, steps);
  for (int64_t s = 0; s < full; ++s) step(s, std::false_type{});
  for (int64_t s = full; s < steps; ++s) step(s, std::true_type{});
#pragma GCC unroll 6
  for (int j = 0; j < units_together; ++j) {
    if (j >= units) break;
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      Compute* place = sums[j] + v * lanes;
      (fresh ? total[j][v] : Vec::loadu(place) + total[j][v]).store(place);
    }
  }
}

template <Access access, typename Compute>
void multiply(int vectors, const Weights<Compute>& weights, const Compute* tile, int64_t stride, int64_t steps,
              Compute* const* sums, int units, bool fresh) {
  switch (vectors) {
    case 1: return multiply<1, access>(weights, tile, stride, steps, sums, units, fresh);
#if defined(CPU_CAPABILITY_AVX512)
    case 2: return multiply<2, access>(weights, tile, stride, steps, sums, units, fresh);
    case 3: return multiply<3, access>(weights, tile, stride, steps, sums, units, fresh);
#endif
    default: return multiply<most_vectors, access>(weights, tile, stride, steps, sums, units, fresh);
  }
}

template <typename Compute>
void multiply(Access access, int vectors, const Weights<Compute>& weights, const Compute* tile, int64_t stride,
              int64_t steps, Compute* const* sums, int units, bool fresh) {
  switch (access) {
    case Access::contiguous:
      return multiply<Access::contiguous>(vectors, weights, tile, stride, steps, sums, units, fresh);
    case Access::gathered:
      return multiply<Access::gathered>(vectors, weights, tile, stride, steps, sums, units, fresh);
    case Access::indexed:
      return multiply<Access::indexed>(vectors, weights, tile, stride, steps, sums, units, fresh);
  }
}

template <typename Compute>
int vectors_of(int64_t lanes) {
  const int64_t vectors = (lanes + Vector<Compute>::size() - 1) / Vector<Compute>::size();
  if (most_vectors == 2) return vectors >= 2 ? 2 : 1;
  return static_cast<int>(std::min<int64_t>(vectors, most_vectors));
}

// Copies at most a tile's lanes, as vectors: a call of memcpy would cost more than copying so few.
template <typename Compute>
AR_FAST_INLINE void copy_lanes(const Compute* from, int64_t lanes, Compute* to) {
  constexpr int64_t size = Vector<Compute>::size();
  int64_t k = 0;
  for (; k + size <= lanes; k += size) Vector<Compute>::loadu(from + k).store(to + k);
  if (k < lanes) Vector<Compute>::loadu(from + k, lanes - k).store(to + k, lanes - k);
}

// The sorted row's extent.
inline int64_t extent_of(const MaskPlan& plan, int64_t row) {
  return plan.extents[plan.rows == nullptr ? row : plan.rows[row]];
}

// Calls body(begin, end) for the runs of the reduction that the panel needs.
template <typename Body>
void for_each_run(const MaskPlan& plan, bool over_columns, int64_t unit, int64_t begin, int64_t end,
                  const Body& body) {
  if (plan.tiles == nullptr) {
    if (begin < end) body(begin, end);
    return;
  }
  const int64_t tile_columns = (plan.in_features + mask_tile_size - 1) / mask_tile_size;
  const int64_t own = unit / mask_tile_size, tiles = (end + mask_tile_size - 1) / mask_tile_size;
  const auto empty = [&](int64_t tile) {
    return plan.tiles[over_columns ? own * tile_columns + tile : tile * tile_columns + own] == 0;
  };
  for (int64_t tile = 0; tile < tiles;) {
    if (empty(tile)) {
      ++tile;
      continue;
    }
    int64_t last = tile + 1;
    while (last < tiles && !empty(last)) ++last;
    body(tile * mask_tile_size, std::min(last * mask_tile_size, end));
    tile = last;
  }
}

// Applies f to the first vectors of each row of sums [rows][width].
template <typename Compute>
void activate_tile(Activation activation, int vectors, int64_t rows, Compute* sums) {
  if (activation == Activation::none) return;
  for (int64_t u = 0; u < rows; ++u) {
    for (int v = 0; v < vectors; ++v) {
      Compute* place = sums + u * tile_width<Compute>() + v * Vector<Compute>::size();
      activate<Compute>(activation, Vector<Compute>::loadu(place)).store(place);
    }
  }
}

template <typename Compute>
void row_pointers(Compute* first, int64_t stride, int units, Compute** pointers) {
  for (int j = 0; j < units_together; ++j) pointers[j] = first + std::min(j, units - 1) * stride;
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace ar_fast
