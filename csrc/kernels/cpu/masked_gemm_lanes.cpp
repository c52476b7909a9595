// y and dX with features of the result as lanes: rows of the batch are broadcast, six at a time, and multiplied by a
// tile of the weight, so neither the batch nor the result is transposed.
#include "masked_gemm_tile.h"

namespace ar_fast {
namespace CPU_CAPABILITY {
namespace {

// Rows that are multiplied by a tile together: their sums stay in L1 beside a chunk of the tile. There are fewer if
// several tiles follow one another and the rows should stay cached, or if results are scattered over whole rows.
constexpr int64_t block_rows = 16 * masked_gemm_rows, shared_rows = 4 * masked_gemm_rows,
                  scattered_rows = 2 * masked_gemm_rows;
// Steps between two updates of the sums. If steps are a row of the weight apart, they must not touch more pages than
// L1's translations hold.
constexpr int64_t block_steps = 64, packed_steps = 128, in_place_steps = 64;

// Scratch of one thread: sums [block_rows][width], a block [16][64] to be transposed, and tiles [steps][width].
template <typename Compute>
struct LanesScratch {
  explicit LanesScratch(void* memory)
      : sums(static_cast<Compute*>(memory)), block(sums + block_rows * tile_width<Compute>()),
        tiles(block + 16 * block_steps) {}
  static int64_t bytes(int64_t steps, int64_t tiles) {
    const int64_t elements = (block_rows + steps * tiles) * tile_width<Compute>() + 16 * block_steps;
    return elements * static_cast<int64_t>(sizeof(Compute));
  }
  Compute *sums, *block, *tiles;
};

// tile[s][lane] = weight[first + lane][s], masked, for the sorted columns s of [begin, end).
template <typename Compute>
void pack_rows(const MaskedGemm& arguments, int64_t first, int64_t lanes, int64_t begin, int64_t end, Compute* block,
               Compute* tile) {
  constexpr int64_t width = tile_width<Compute>();
  for (int64_t lane = 0; lane < lanes; lane += 16) {
    const int64_t unit = first + lane, units = std::min<int64_t>(16, lanes - lane);
    for (int64_t s = begin; s < end; s += block_steps) {
      const int64_t steps = std::min(block_steps, end - s);
      masked_pack(arguments.storage, arguments.plan, arguments.weight, {unit, unit + units, s, s + steps}, block);
      for (int64_t k = 0; k < steps; k += 16) {
        transpose(block + k, steps, tile + (s + k) * width + lane, width, units, std::min<int64_t>(16, steps - k));
      }
    }
  }
}

// tile[s][lane] = weight[s][first + lane], masked, for the sorted rows s of [begin, end).
template <typename Compute>
void pack_columns(const MaskedGemm& arguments, int64_t first, int64_t lanes, int64_t begin, int64_t end,
                  Compute* tile) {
  constexpr int64_t width = tile_width<Compute>();
  if (lanes == width) {
    masked_pack(arguments.storage, arguments.plan, arguments.weight, {begin, end, first, first + lanes},
                tile + begin * width);
    return;
  }
  for (int64_t s = begin; s < end; ++s) {
    masked_pack(arguments.storage, arguments.plan, arguments.weight, {s, s + 1, first, first + lanes},
                tile + s * width);
  }
}

// Copies rows of sums [rows][width] to rows of output, with features in the op's order.
template <typename Compute>
void write_rows(const Compute* sums, int64_t rows, int64_t first, int64_t lanes, const int32_t* places,
                int64_t features, Compute* output) {
  constexpr int64_t width = tile_width<Compute>();
  if (places == nullptr) {
    for (int64_t r = 0; r < rows; ++r) copy_lanes(sums + r * width, lanes, output + r * features + first);
    return;
  }
  // Four rows share the look-up of an index.
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, sums += 4 * width, output += 4 * features) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      Compute* out = output + places[first + lane];
      out[0] = sums[lane];
      out[features] = sums[width + lane];
      out[2 * features] = sums[2 * width + lane];
      out[3 * features] = sums[3 * width + lane];
    }
  }
  for (; r < rows; ++r, sums += width, output += features) {
    for (int64_t lane = 0; lane < lanes; ++lane) output[places[first + lane]] = sums[lane];
  }
}

// One tile of lanes: over the weight's columns for y (`over_columns`), over its rows for dX.
template <typename Compute>
struct LanesTile {
  static constexpr int64_t width = tile_width<Compute>();

  LanesTile(const MaskedGemm& arguments, int64_t first, int64_t end, bool over_columns, Compute* packed)
      : plan(arguments.plan), starts(arguments.starts), first(first), lanes(std::min(width, end - first)),
        over_columns(over_columns), begin(nested() && !over_columns ? arguments.starts[first] : 0),
        end(!over_columns ? plan.out_features : nested() ? extent_of(plan, first + lanes - 1) : plan.in_features),
        in_place(this->end), packed(packed) {
    if (arguments.unpacked && lanes == width) in_place = arguments.starts[first + lanes - 1];
  }

  bool nested() const { return plan.extents != nullptr; }

  template <typename Body>
  void for_each_run(const Body& body) const {
    CPU_CAPABILITY::for_each_run(plan, over_columns, first, begin, end, body);
  }

  void pack(const MaskedGemm& arguments, Compute* block) const {
    if (lanes < width) set_zero(packed, end * width);
    for_each_run([&](int64_t from, int64_t to) {
      to = std::min(to, in_place);
      if (from >= to) return;
      over_columns ? pack_rows(arguments, first, lanes, from, to, block, packed)
                   : pack_columns(arguments, first, lanes, from, to, packed);
    });
  }

  // Calls body(from, to, first lane, vectors) for ranges of [begin, end): some steps of a staircase see a part of the
  // lanes only.
  template <typename Body>
  void for_each_vectors(int64_t begin, int64_t end, const Body& body) const {
    constexpr int64_t size = Vector<Compute>::size(), worth_a_call = 24;
    const int vectors = vectors_of<Compute>(lanes);
    if (!nested() || vectors == 1) return body(begin, end, 0, vectors);
    // The end of the steps for which vectors before the v-th (dX), or from it on (y), are enough.
    const auto until = [&](int v) -> int64_t {
      return over_columns ? extent_of(plan, first + v * size - 1) : starts[first + v * size];
    };
    const int64_t ragged = over_columns ? end - until(1) : until(vectors - 1) - begin;
    if (ragged < worth_a_call) return body(begin, end, 0, vectors);
    for (int v = 1; v <= vectors && begin < end; ++v) {
      const int64_t to = v == vectors ? end : std::min(until(v), end);
      if (begin < to) body(begin, to, over_columns ? (v - 1) * size : 0, over_columns ? vectors - v + 1 : v);
      begin = std::max(begin, to);
    }
  }

  const MaskPlan& plan;
  const int32_t* starts;
  int64_t first, lanes;
  bool over_columns;
  int64_t begin, end;              // the range of the sum
  int64_t in_place;                // from this step on, every lane sees all steps, so the weight itself is the tile
  Compute* packed;                 // [end][width]
};

template <typename Compute>
void product(const MaskedGemm& arguments, const MaskedGemmPart& part, bool over_columns) {
  using Tile = LanesTile<Compute>;
  constexpr int64_t width = Tile::width;
  const MaskPlan& plan = arguments.plan;
  const int64_t steps = over_columns ? plan.in_features : plan.out_features;
  const int64_t features = over_columns ? plan.out_features : plan.in_features;
  const int32_t* const places = over_columns ? plan.rows : plan.columns;
  const int32_t* const index = arguments.sorted ? nullptr : over_columns ? plan.columns : plan.rows;
  const Access access = index == nullptr ? Access::contiguous : Access::gathered;
  const LanesScratch<Compute> scratch(arguments.scratch);
  const auto tile_at = [&](int64_t first) {
    return Tile(arguments, first, part.unit_end, over_columns, scratch.tiles + (first - part.unit_begin) * steps);
  };
  for (int64_t first = part.unit_begin; first < part.unit_end; first += width) {
    tile_at(first).pack(arguments, scratch.block);
  }

  const auto* bias = static_cast<const Compute*>(arguments.bias);
  const auto* weight = static_cast<const Compute*>(arguments.weight);
  const auto* rows = static_cast<const Compute*>(arguments.tiles);
  auto* output = static_cast<Compute*>(arguments.output);
  const int64_t block = places != nullptr                             ? scattered_rows
                        : part.unit_end - part.unit_begin > width ? shared_rows
                                                                  : block_rows;
  const int64_t row_end = std::min(part.tile_end * masked_gemm_rows, arguments.batch);
  for (int64_t row = part.tile_begin * masked_gemm_rows; row < row_end; row += block) {
    const int64_t count = std::min(block, row_end - row);
    for (int64_t first = part.unit_begin; first < part.unit_end; first += width) {
      const Tile tile = tile_at(first);
      const int vectors = vectors_of<Compute>(tile.lanes);
      Compute start[width] = {};
      for (int64_t lane = 0; bias != nullptr && lane < tile.lanes; ++lane) {
        start[lane] = bias[places == nullptr ? first + lane : places[first + lane]];
      }
      for (int v = 0; v < most_vectors; ++v) {
        constexpr int size = Vector<Compute>::size();
        const auto values = Vector<Compute>::loadu(start + v * size);
        for (int64_t r = 0; r < count; ++r) values.store(scratch.sums + r * width + v * size);
      }
      const auto add = [&](int64_t begin, int64_t end, const Compute* data, int64_t stride, int64_t lane, int vectors) {
        for (int64_t r = 0; r < count; r += units_together) {
          const int together = static_cast<int>(std::min<int64_t>(units_together, count - r));
          Compute* sums[units_together];
          row_pointers(scratch.sums + r * width + lane, width, together, sums);
          Weights<Compute> weights(rows + (row + r) * steps + (index == nullptr ? begin : 0), steps, together);
          weights.index = index == nullptr ? nullptr : index + begin;
          multiply(access, vectors, weights, data + lane, stride, end - begin, sums, together, false);
        }
      };
      tile.for_each_run([&](int64_t begin, int64_t end) {
        const int64_t middle = std::max(begin, std::min(end, tile.in_place));
        tile.for_each_vectors(begin, middle, [&](int64_t from, int64_t to, int64_t lane, int part_vectors) {
          for (int64_t s = from; s < to; s += packed_steps) {
            add(s, std::min(s + packed_steps, to), tile.packed + s * width, width, lane, part_vectors);
          }
        });
        for (int64_t s = middle; s < end; s += in_place_steps) {
          add(s, std::min(s + in_place_steps, end), weight + s * features + first, features, 0, vectors);
        }
      });
      activate_tile(arguments.activation, vectors, count, scratch.sums);
      if (may_hold_nan(scratch.sums, count * width)) arguments.undefined->store(true, std::memory_order_relaxed);
      write_rows(scratch.sums, count, first, tile.lanes, places, features, output + row * features);
    }
  }
}

}  // namespace

void masked_gemm_lanes_scratch(bool float64, int64_t steps, int64_t tiles, int64_t* bytes) {
  *bytes = float64 ? LanesScratch<double>::bytes(steps, tiles) : LanesScratch<float>::bytes(steps, tiles);
}

void masked_gemm_y_lanes(const MaskedGemm& arguments, const MaskedGemmPart& part) {
  arguments.storage == ScalarType::float64 ? product<double>(arguments, part, true)
                                           : product<float>(arguments, part, true);
}

void masked_gemm_dx_lanes(const MaskedGemm& arguments, const MaskedGemmPart& part) {
  arguments.storage == ScalarType::float64 ? product<double>(arguments, part, false)
                                           : product<float>(arguments, part, false);
}

}  // namespace CPU_CAPABILITY
}  // namespace ar_fast
