#include "masked_gemm_tile.h"

namespace ar_fast {
namespace CPU_CAPABILITY {
namespace {

// The lanes are rows of the matrix.
template <typename Compute>
void fill_tiles_by_rows(const Compute* matrix, int64_t rows, int64_t columns, const int32_t* order, Compute* tiles,
                        int64_t begin, int64_t end) {
  constexpr int64_t width = tile_width<Compute>(), block = 64;
  Compute gathered[width * block];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * width, count = std::min(width, rows - first);
    Compute* out = tiles + (tile - begin) * columns * width;
    if (count < width) set_zero(out, columns * width);
    // It goes in blocks of steps, so that the lines read and the lines written both stay in L1.
    for (int64_t s = 0; s < columns; s += block) {
      const int64_t depth = std::min(block, columns - s);
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
  }
}

// The lanes are columns of the matrix. It goes row by row, since the columns of a tile may be anywhere in a row.
template <typename Compute>
void fill_tiles_by_columns(const Compute* matrix, int64_t rows, int64_t columns, const int32_t* order, Compute* tiles,
                           int64_t begin, int64_t end) {
  constexpr int64_t width = tile_width<Compute>();
  for (int64_t s = 0; s < rows; ++s) {
    const Compute* row = matrix + s * columns;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * width, count = std::min(width, columns - first);
      Compute* out = tiles + ((tile - begin) * rows + s) * width;
      if (order == nullptr) {
        copy_lanes(row + first, count, out);
      } else {
        for (int64_t k = 0; k < count; ++k) out[k] = row[order[first + k]];
      }
      if (count < width) set_zero(out + count, width - count);
    }
  }
}

template <typename Compute>
void fill_tiles(bool by_rows, const Compute* matrix, int64_t rows, int64_t columns, const int32_t* order,
                Compute* tiles, int64_t begin, int64_t end) {
  by_rows ? fill_tiles_by_rows(matrix, rows, columns, order, tiles, begin, end)
          : fill_tiles_by_columns(matrix, rows, columns, order, tiles, begin, end);
}

template <typename Compute>
void transpose_rows(const Compute* matrix, int64_t rows, int64_t columns, int64_t begin, int64_t end, Compute* out) {
  constexpr int64_t block = 16;
  for (int64_t c = begin; c < end; c += block) {
    for (int64_t r = 0; r < rows; r += block) {
      transpose(matrix + r * columns + c, columns, out + c * rows + r, rows, std::min(block, rows - r),
                std::min(block, end - c));
    }
  }
}

// Scratch of one thread: sums [panel][width] and packed [panel][steps].
template <typename Compute>
struct Scratch {
  explicit Scratch(void* memory)
      : sums(static_cast<Compute*>(memory)), packed(sums + masked_panel * tile_width<Compute>()) {}
  static int64_t bytes(int64_t steps) {
    return masked_panel * (tile_width<Compute>() + steps) * static_cast<int64_t>(sizeof(Compute));
  }
  Compute *sums, *packed;
};

// Copies the lanes of sums [units][width] to rows of output, with features in the op's order.
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
  // Row by row, since the places of a unit in many rows would share a few sets of the cache.
  for (int64_t r = 0; r < rows; ++r) {
    Compute* out = output + (row + r) * features;
    for (int64_t u = 0; u < units; ++u) out[order[unit_begin + u]] = sums[u * width + r];
  }
}

template <typename Compute>
void forward(const MaskedGemm& arguments, const MaskedGemmPart& part) {
  constexpr int64_t width = tile_width<Compute>();
  const MaskPlan& plan = arguments.plan;
  const int64_t steps = plan.in_features, units = part.unit_end - part.unit_begin;
  const bool nested = plan.extents != nullptr;
  const int64_t last_extent = nested ? extent_of(plan, part.unit_end - 1) : steps;
  const bool pack = !arguments.unpacked;
  const Access access = pack || plan.columns == nullptr ? Access::contiguous : Access::indexed;
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
          const Compute* places = x + begin * width;
          Weights<Compute> weights(scratch.packed + u * steps + begin, steps, count);
          if (!pack) {
            weights.all_end = std::max<int64_t>(0, extent_of(plan, first) - begin);
            for (int j = 0; j < units_together; ++j) {
              const int64_t unit = first + std::min(j, count - 1);
              const int64_t source = plan.rows == nullptr ? unit : plan.rows[unit];
              weights.unit[j] = static_cast<const Compute*>(arguments.weight) + source * steps;
              weights.end[j] = plan.extents[source] - begin;
            }
            if (access == Access::indexed) {
              weights.index = plan.columns + begin;
              places = x;
            } else {
              for (int j = 0; j < units_together; ++j) weights.unit[j] += begin;
            }
          }
          multiply(access, vectors, weights, places, width, end - begin, sums, count, false);
        }
      }
    });
    activate_tile(arguments.activation, vectors, units, scratch.sums);
    if (may_hold_nan(scratch.sums, units * width)) arguments.undefined->store(true, std::memory_order_relaxed);
    write_tile(scratch.sums, part.unit_begin, units, row, rows, plan.rows, plan.out_features,
               static_cast<Compute*>(arguments.output));
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
      const auto* x = static_cast<const Compute*>(arguments.tiles) + tile * batch * width;
      for (int64_t u = 0; u < units; u += units_together) {
        const int count = static_cast<int>(std::min<int64_t>(units_together, units - u));
        const int64_t seen = nested ? extent_of(plan, unit_begin + u + count - 1) - column : columns;
        if (seen <= 0) continue;
        const int vectors = vectors_of<Compute>(std::min(seen, columns));
        // Whole tiles of sums are written directly to dW.
        Compute* const place = output + u * output_stride + column;
        Compute* sums[units_together];
        if (columns == width) {
          row_pointers(place, output_stride, count, sums);
        } else {
          row_pointers(scratch.sums, width, count, sums);
        }
        Weights<Compute> weights(dy, 0, count);
        for (int j = 0; j < units_together; ++j) {
          const int64_t unit = unit_begin + u + std::min(j, count - 1);
          weights.unit[j] += (plan.rows == nullptr ? unit : plan.rows[unit]) * batch;
        }
        for (int64_t begin = 0; begin < batch; begin += chunk_steps) {
          multiply(Access::contiguous, vectors, weights, x + begin * width, width, std::min(chunk_steps, batch - begin),
                   sums, count, begin == 0);
          for (const Compute*& unit : weights.unit) unit += chunk_steps;
        }
        for (int j = 0; columns < width && j < count; ++j) {
          copy_lanes(sums[j], columns, place + j * output_stride);
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

void masked_gemm_transpose(bool float64, const void* matrix, int64_t rows, int64_t columns, int64_t begin, int64_t end,
                           void* transposed) {
  if (float64) {
    transpose_rows(static_cast<const double*>(matrix), rows, columns, begin, end, static_cast<double*>(transposed));
  } else {
    transpose_rows(static_cast<const float*>(matrix), rows, columns, begin, end, static_cast<float*>(transposed));
  }
}

void masked_gemm_y(const MaskedGemm& arguments, const MaskedGemmPart& part) {
  arguments.storage == ScalarType::float64 ? forward<double>(arguments, part) : forward<float>(arguments, part);
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
