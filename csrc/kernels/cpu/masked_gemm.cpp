#include "masked_gemm_cpu.h"

#include <ATen/cpu/vec/vec.h>

#include <cstring>

#include "masked_linear_cpu.h"

namespace ar_fast {
namespace CPU_CAPABILITY {
namespace {

template <typename Compute>
using Vector = at::vec::Vectorized<Compute>;

// Six units by up to four vectors fill the 32 registers of AVX-512, by two the 16 of AVX2.
constexpr int units_together = masked_gemm_rows;
#if defined(CPU_CAPABILITY_AVX512)
constexpr int most_vectors = 4;
#else
constexpr int most_vectors = 2;
#endif
// Steps between two visits of the accumulators: a tile's chunk stays in L2, the weights' in L1.
constexpr int64_t chunk_steps = 512;
// The same where steps lie a row of the weight apart: 16 KB, and no more pages than L1's translations hold.
constexpr int64_t in_place_steps = 64;

template <typename Compute>
constexpr int64_t tile_width() {
  return most_vectors * Vector<Compute>::size();
}

// Reads step s of unit j at unit[j][s].
template <typename Compute>
struct Weights {
  const Compute* unit[units_together];
};

// sums[j][lane] += sum over steps of weights[j][s] tile[s][lane], or = where `fresh`; steps are `stride` apart.
template <int Vectors, typename Compute>
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
  for (int64_t s = 0; s < steps; ++s) {
    Vec x[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) x[v] = Vec::loadu(tile + s * stride + v * lanes);
    const Compute w[units_together] = {w0[s], w1[s], w2[s], w3[s], w4[s], w5[s]};
#pragma GCC unroll 6
    for (int j = 0; j < units_together; ++j) {
      const Vec factor(w[j]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) total[j][v] = at::vec::fmadd(factor, x[v], total[j][v]);
    }
  }
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

template <typename Compute>
void multiply(int vectors, const Weights<Compute>& weights, const Compute* tile, int64_t stride, int64_t steps,
              Compute* const* sums, int units, bool fresh) {
  switch (vectors) {
    case 1: return multiply<1>(weights, tile, stride, steps, sums, units, fresh);
#if defined(CPU_CAPABILITY_AVX512)
    case 2: return multiply<2>(weights, tile, stride, steps, sums, units, fresh);
    case 3: return multiply<3>(weights, tile, stride, steps, sums, units, fresh);
#endif
    default: return multiply<most_vectors>(weights, tile, stride, steps, sums, units, fresh);
  }
}

// out[c][r] = in[r][c]
template <typename Compute>
void transpose(const Compute* in, int64_t in_stride, Compute* out, int64_t out_stride, int64_t rows, int64_t columns) {
  if constexpr (std::is_same_v<Compute, float>) {
#if defined(CPU_CAPABILITY_AVX512)
    at::vec::transpose_mxn<float>(in, in_stride, out, out_stride, static_cast<int>(rows), static_cast<int>(columns));
    return;
#elif defined(CPU_CAPABILITY_AVX2)
    const int64_t full_rows = rows / 8 * 8, full_columns = columns / 8 * 8;
    for (int64_t r = 0; r < full_rows; r += 8) {
      for (int64_t c = 0; c < full_columns; c += 8) {
        at::vec::transpose_mxn<float, 8, 8>(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = r < full_rows ? full_columns : 0; c < columns; ++c) {
        out[c * out_stride + r] = in[r * in_stride + c];
      }
    }
    return;
#endif
  }
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) out[c * out_stride + r] = in[r * in_stride + c];
  }
}

template <typename Compute>
int vectors_of(int64_t lanes) {
  const int64_t vectors = (lanes + Vector<Compute>::size() - 1) / Vector<Compute>::size();
  if (most_vectors == 2) return vectors >= 2 ? 2 : 1;
  return static_cast<int>(std::min<int64_t>(vectors, most_vectors));
}

template <typename Compute>
void fill_tiles(bool by_rows, const Compute* matrix, int64_t rows, int64_t columns, const int32_t* order,
                Compute* tiles, int64_t begin, int64_t end) {
  constexpr int64_t width = tile_width<Compute>(), block = 64;
  const int64_t lanes = by_rows ? rows : columns, steps = by_rows ? columns : rows;
  Compute gathered[width * block];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * width, count = std::min(width, lanes - first);
    Compute* out = tiles + (tile - begin) * steps * width;
    if (by_rows) {
      if (count < width) std::memset(static_cast<void*>(out), 0, steps * width * sizeof(Compute));
      // In blocks of steps, so that the lines read and written both stay in L1.
      for (int64_t s = 0; s < steps; s += block) {
        const int64_t depth = std::min(block, steps - s);
        const Compute* source = matrix + first * columns + s;
        int64_t stride = columns;
        if (order != nullptr) {
          for (int64_t r = 0; r < count; ++r) {
            const Compute* row = matrix + (first + r) * columns;
            for (int64_t k = 0; k < depth; ++k) gathered[r * block + k] = row[order[s + k]];
          }
          source = gathered;
          stride = block;
        }
        for (int64_t k = 0; k < depth; k += 16) {
          transpose(source + k, stride, out + (s + k) * width, width, count, std::min<int64_t>(16, depth - k));
        }
      }
    } else {
      for (int64_t s = 0; s < steps; ++s) {
        const Compute* row = matrix + s * columns;
        if (order == nullptr) {
          std::memcpy(out + s * width, row + first, count * sizeof(Compute));
        } else {
          for (int64_t k = 0; k < count; ++k) out[s * width + k] = row[order[first + k]];
        }
        std::memset(static_cast<void*>(out + s * width + count), 0, (width - count) * sizeof(Compute));
      }
    }
  }
}

// The sorted row's extent.
inline int64_t extent_of(const MaskPlan& plan, int64_t row) {
  return plan.extents[plan.rows == nullptr ? row : plan.rows[row]];
}

// Runs of the reduction that the panel needs: body(begin, end).
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

// Scratch of one thread: sums [panel][width], ragged [units together][chunk_steps] or [in_place_steps][width], packed
// [panel][steps] and a block [16][panel] on its way to be transposed.
template <typename Compute>
struct Scratch {
  explicit Scratch(void* memory)
      : sums(static_cast<Compute*>(memory)), ragged(sums + masked_panel * tile_width<Compute>()),
        block(ragged + ragged_elements), packed(block + 16 * masked_panel) {}
  static int64_t bytes(int64_t steps) {
    return (masked_panel * tile_width<Compute>() + ragged_elements + 16 * masked_panel +
            masked_panel * steps) * static_cast<int64_t>(sizeof(Compute));
  }
  static constexpr int64_t ragged_elements =
      std::max<int64_t>(units_together * chunk_steps, in_place_steps * tile_width<Compute>());
  Compute *sums, *ragged, *block, *packed;
};

// Lanes of sums [units][width] -> rows of output, features in the op's order.
template <typename Compute>
void write_tile(const Compute* sums, int64_t unit_begin, int64_t units, int64_t row, int64_t rows,
                const int32_t* order, int64_t features, Compute* output) {
  constexpr int64_t width = tile_width<Compute>();
  if (order == nullptr) {
    for (int64_t u = 0; u < units; u += 16) {
      transpose(sums + u * width, width, output + row * features + unit_begin + u, features,
                std::min<int64_t>(16, units - u), rows);
    }
    return;
  }
  Compute turned[width * 16];
  for (int64_t u = 0; u < units; u += 16) {
    const int64_t count = std::min<int64_t>(16, units - u);
    transpose(sums + u * width, width, turned, 16, count, rows);
    const int32_t* places = order + unit_begin + u;
    for (int64_t r = 0; r < rows; ++r) {
      Compute* out = output + (row + r) * features;
      for (int64_t j = 0; j < count; ++j) out[places[j]] = turned[r * 16 + j];
    }
  }
}

template <typename Compute>
void row_pointers(Compute* first, int64_t stride, int units, Compute** pointers) {
  for (int j = 0; j < units_together; ++j) pointers[j] = first + std::min(j, units - 1) * stride;
}

template <typename Storage, typename Compute>
void forward(const MaskedGemm& arguments, const MaskedGemmPart& part) {
  constexpr int64_t width = tile_width<Compute>();
  const MaskPlan& plan = arguments.plan;
  const int64_t steps = plan.in_features, units = part.unit_end - part.unit_begin;
  const bool nested = plan.extents != nullptr;
  const int64_t last_extent = nested ? extent_of(plan, part.unit_end - 1) : steps;
  const bool pack = !std::is_same_v<Storage, Compute> || plan.columns != nullptr || !nested;
  Scratch<Compute> scratch(arguments.scratch);
  if (pack) {
    for_each_run(plan, true, part.unit_begin, 0, last_extent, [&](int64_t begin, int64_t end) {
      for (int64_t u = 0; u < units; ++u) {
        masked_pack(arguments.storage, plan, arguments.weight,
                    {part.unit_begin + u, part.unit_begin + u + 1, begin, end}, scratch.packed + u * steps + begin);
      }
    });
  }
  const auto* bias = static_cast<const Compute*>(arguments.bias);
  for (int64_t tile = part.tile_begin; tile < part.tile_end; ++tile) {
    const int64_t row = tile * width, rows = std::min(width, arguments.batch - row);
    const int vectors = vectors_of<Compute>(rows);
    const auto* x = static_cast<const Compute*>(arguments.tiles) + (tile - part.tile_begin) * steps * width;
    for (int64_t u = 0; u < units; ++u) {
      const int64_t unit = part.unit_begin + u;
      const Vector<Compute> start(bias == nullptr ? Compute(0) : bias[plan.rows == nullptr ? unit : plan.rows[unit]]);
      for (int64_t v = 0; v < width; v += start.size()) start.store(scratch.sums + u * width + v);
    }
    for_each_run(plan, true, part.unit_begin, 0, last_extent, [&](int64_t run_begin, int64_t run_end) {
      for (int64_t begin = run_begin; begin < run_end; begin += chunk_steps) {
        const int64_t chunk_end = std::min(begin + chunk_steps, run_end);
        for (int64_t u = 0; u < units; u += units_together) {
          const int count = static_cast<int>(std::min<int64_t>(units_together, units - u));
          const int64_t first = part.unit_begin + u;
          const int64_t end = nested ? std::min(chunk_end, extent_of(plan, first + count - 1)) : chunk_end;
          if (end <= begin) continue;
          Compute* sums[units_together];
          row_pointers(scratch.sums + u * width, width, count, sums);
          Weights<Compute> weights;
          if (pack) {
            for (int j = 0; j < units_together; ++j) {
              weights.unit[j] = scratch.packed + (u + std::min(j, count - 1)) * steps + begin;
            }
            multiply(vectors, weights, x + begin * width, width, end - begin, sums, count, false);
            continue;
          }
          if constexpr (std::is_same_v<Storage, Compute>) {
            // All six rows see [begin, common); the rest of the chunk is copied with zeros for those that do not.
            const int64_t common = std::max(begin, std::min(end, extent_of(plan, first)));
            for (int j = 0; j < units_together; ++j) {
              const int64_t unit = first + std::min(j, count - 1);
              const int64_t source = plan.rows == nullptr ? unit : plan.rows[unit];
              weights.unit[j] = static_cast<const Compute*>(arguments.weight) + source * steps + begin;
            }
            if (common > begin) {
              multiply(vectors, weights, x + begin * width, width, common - begin, sums, count, false);
            }
            if (end > common) {
              for (int j = 0; j < units_together; ++j) {
                Compute* out = scratch.ragged + j * chunk_steps;
                const int64_t seen = extent_of(plan, first + std::min(j, count - 1));
                const int64_t allowed = std::max<int64_t>(0, std::min(end, seen) - common);
                std::memcpy(out, weights.unit[j] + (common - begin), allowed * sizeof(Compute));
                std::memset(static_cast<void*>(out + allowed), 0, (end - common - allowed) * sizeof(Compute));
                weights.unit[j] = out;
              }
              multiply(vectors, weights, x + common * width, width, end - common, sums, count, false);
            }
          }
        }
      }
    });
    write_tile(scratch.sums, part.unit_begin, units, row, rows, plan.rows, plan.out_features,
               static_cast<Compute*>(arguments.output));
  }
}

template <typename Compute>
void backward_input(const MaskedGemm& arguments, const MaskedGemmPart& part) {
  constexpr int64_t width = tile_width<Compute>();
  const MaskPlan& plan = arguments.plan;
  const int64_t steps = plan.out_features, units = part.unit_end - part.unit_begin;
  const bool nested = plan.extents != nullptr;
  const int64_t first_row = nested ? arguments.starts[part.unit_begin] : 0;
  Scratch<Compute> scratch(arguments.scratch);
  for_each_run(plan, false, part.unit_begin, first_row, steps, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += 16) {
      const int64_t count = std::min<int64_t>(16, end - row);
      masked_pack(arguments.storage, plan, arguments.weight, {row, row + count, part.unit_begin, part.unit_end},
                  scratch.block);
      transpose(scratch.block, units, scratch.packed + row, steps, count, units);
    }
  });
  for (int64_t tile = part.tile_begin; tile < part.tile_end; ++tile) {
    const int64_t row = tile * width, rows = std::min(width, arguments.batch - row);
    const int vectors = vectors_of<Compute>(rows);
    const auto* dy = static_cast<const Compute*>(arguments.tiles) + (tile - part.tile_begin) * steps * width;
    std::memset(static_cast<void*>(scratch.sums), 0, units * width * sizeof(Compute));
    for_each_run(plan, false, part.unit_begin, first_row, steps, [&](int64_t run_begin, int64_t run_end) {
      for (int64_t chunk = run_begin; chunk < run_end; chunk += chunk_steps) {
        const int64_t end = std::min(chunk + chunk_steps, run_end);
        for (int64_t u = 0; u < units; u += units_together) {
          const int count = static_cast<int>(std::min<int64_t>(units_together, units - u));
          const int64_t begin =
              nested ? std::max<int64_t>(chunk, arguments.starts[part.unit_begin + u]) : chunk;
          if (begin >= end) continue;
          Compute* sums[units_together];
          row_pointers(scratch.sums + u * width, width, count, sums);
          Weights<Compute> weights;
          for (int j = 0; j < units_together; ++j) {
            weights.unit[j] = scratch.packed + (u + std::min(j, count - 1)) * steps + begin;
          }
          multiply(vectors, weights, dy + begin * width, width, end - begin, sums, count, false);
        }
      }
    });
    write_tile(scratch.sums, part.unit_begin, units, row, rows, plan.columns, plan.in_features,
               static_cast<Compute*>(arguments.output));
  }
}

// dX from a staircase in place. Here units are rows of dY, whose elements are broadcast, and lanes are columns of the
// weight: neither is packed, and the sums lie where dX does. Only steps whose rows do not see all columns are copied.
template <typename Compute>
void backward_input_in_place(const MaskedGemm& arguments, const MaskedGemmPart& part) {
  constexpr int64_t width = tile_width<Compute>();
  const MaskPlan& plan = arguments.plan;
  const int64_t steps = plan.out_features, inputs = plan.in_features;
  const int64_t columns = part.unit_end - part.unit_begin;
  const int64_t row_begin = part.tile_begin * units_together;
  const int64_t row_end = std::min(part.tile_end * units_together, arguments.batch);
  const auto* dy = static_cast<const Compute*>(arguments.tiles);
  const auto* weight = static_cast<const Compute*>(arguments.weight) + part.unit_begin;
  auto* dx = static_cast<Compute*>(arguments.output) + part.unit_begin;
  const int64_t first = arguments.starts[part.unit_begin], all = arguments.starts[part.unit_end - 1];
  if (first >= steps) {
    for (int64_t row = row_begin; row < row_end; ++row) std::memset(dx + row * inputs, 0, columns * sizeof(Compute));
    return;
  }
  Scratch<Compute> scratch(arguments.scratch);
  const int vectors = vectors_of<Compute>(columns);
  // Whole vectors are loaded and stored: beyond the last whole one, from and to copies.
  const bool edge = columns % Vector<Compute>::size() != 0;
  for (int64_t chunk = first / in_place_steps * in_place_steps; chunk < steps; chunk += in_place_steps) {
    const int64_t begin = std::max(chunk, first), end = std::min(chunk + in_place_steps, steps);
    const Compute* tile = weight + begin * inputs;
    int64_t stride = inputs;
    if (edge || begin < all) {
      for (int64_t s = begin; s < end; ++s) {
        Compute* out = scratch.ragged + (s - begin) * width;
        const int64_t seen = std::min(columns, extent_of(plan, s) - part.unit_begin);
        std::memcpy(out, weight + s * inputs, seen * sizeof(Compute));
        std::memset(static_cast<void*>(out + seen), 0, (width - seen) * sizeof(Compute));
      }
      tile = scratch.ragged;
      stride = width;
    }
    for (int64_t row = row_begin; row < row_end; row += units_together) {
      const int count = static_cast<int>(std::min<int64_t>(units_together, row_end - row));
      Weights<Compute> weights;
      Compute *sums[units_together], *outputs[units_together];
      row_pointers(dx + row * inputs, inputs, count, outputs);
      row_pointers(edge ? scratch.sums : outputs[0], edge ? width : inputs, count, sums);
      for (int j = 0; j < units_together; ++j) weights.unit[j] = dy + (row + std::min(j, count - 1)) * steps + begin;
      for (int j = 0; edge && begin > first && j < count; ++j) {
        std::memcpy(sums[j], outputs[j], columns * sizeof(Compute));
      }
      multiply(vectors, weights, tile, stride, end - begin, sums, count, begin == first);
      for (int j = 0; edge && j < count; ++j) std::memcpy(outputs[j], sums[j], columns * sizeof(Compute));
    }
  }
}

template <typename Compute>
void backward_weight(const MaskedGemm& arguments, int64_t unit_begin, int64_t unit_end, Compute* output,
                     int64_t output_stride) {
  constexpr int64_t width = tile_width<Compute>();
  const MaskPlan& plan = arguments.plan;
  const bool nested = plan.extents != nullptr;
  const int64_t units = unit_end - unit_begin, batch = arguments.batch;
  const int64_t last_extent = nested ? extent_of(plan, unit_end - 1) : plan.in_features;
  const auto* dy = static_cast<const Compute*>(arguments.weight);
  Scratch<Compute> scratch(arguments.scratch);
  for_each_run(plan, true, unit_begin, 0, last_extent, [&](int64_t run_begin, int64_t run_end) {
    for (int64_t tile = run_begin / width; tile * width < run_end; ++tile) {
      const int64_t column = tile * width, columns = std::min(width, run_end - column);
      const int vectors = vectors_of<Compute>(columns);
      const auto* x = static_cast<const Compute*>(arguments.tiles) + tile * batch * width;
      for (int64_t u = 0; u < units; u += units_together) {
        const int count = static_cast<int>(std::min<int64_t>(units_together, units - u));
        if (nested && extent_of(plan, unit_begin + u + count - 1) <= column) continue;
        Compute* sums[units_together];
        row_pointers(scratch.sums, width, count, sums);
        for (int64_t begin = 0; begin < batch; begin += chunk_steps) {
          Weights<Compute> weights;
          for (int j = 0; j < units_together; ++j) {
            weights.unit[j] = dy + (unit_begin + u + std::min(j, count - 1)) * batch + begin;
          }
          multiply(vectors, weights, x + begin * width, width, std::min(chunk_steps, batch - begin), sums, count,
                   begin == 0);
        }
        for (int j = 0; j < count; ++j) {
          std::memcpy(output + (u + j) * output_stride + column, sums[j], columns * sizeof(Compute));
        }
      }
    }
  });
}

}  // namespace

void masked_gemm_width(bool float64, int64_t* lanes) { *lanes = float64 ? tile_width<double>() : tile_width<float>(); }

void masked_gemm_scratch(bool float64, int64_t steps, int64_t* bytes) {
  *bytes = float64 ? Scratch<double>::bytes(steps) : Scratch<float>::bytes(steps);
}

void masked_gemm_tiles(bool float64, bool by_rows, const void* matrix, int64_t rows, int64_t columns,
                       const int32_t* order, void* tiles, int64_t tile_begin, int64_t tile_end) {
  if (float64) {
    fill_tiles(by_rows, static_cast<const double*>(matrix), rows, columns, order, static_cast<double*>(tiles),
               tile_begin, tile_end);
  } else {
    fill_tiles(by_rows, static_cast<const float*>(matrix), rows, columns, order, static_cast<float*>(tiles),
               tile_begin, tile_end);
  }
}

void masked_gemm_y(const MaskedGemm& arguments, const MaskedGemmPart& part) {
  switch (arguments.storage) {
    case ScalarType::float32: return forward<float, float>(arguments, part);
    case ScalarType::float64: return forward<double, double>(arguments, part);
    case ScalarType::bfloat16: return forward<c10::BFloat16, float>(arguments, part);
    case ScalarType::float16: return forward<c10::Half, float>(arguments, part);
  }
}

void masked_gemm_dx_in_place(const MaskedGemm& arguments, const MaskedGemmPart& part) {
  arguments.storage == ScalarType::float64 ? backward_input_in_place<double>(arguments, part)
                                           : backward_input_in_place<float>(arguments, part);
}

void masked_gemm_dx(const MaskedGemm& arguments, const MaskedGemmPart& part) {
  arguments.storage == ScalarType::float64 ? backward_input<double>(arguments, part)
                                           : backward_input<float>(arguments, part);
}

void masked_gemm_dw(const MaskedGemm& arguments, int64_t unit_begin, int64_t unit_end, void* output,
                    int64_t output_stride) {
  if (arguments.storage == ScalarType::float64) {
    backward_weight(arguments, unit_begin, unit_end, static_cast<double*>(output), output_stride);
  } else {
    backward_weight(arguments, unit_begin, unit_end, static_cast<float*>(output), output_stride);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace ar_fast
