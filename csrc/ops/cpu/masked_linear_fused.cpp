// masked_linear through our own kernels.
#include <algorithm>

#include "../../kernels/cpu/masked_gemm_cpu.h"
#include "masked_linear_paths.h"

namespace ar_fast {
namespace {

// Batches of up to this many rows stream the weight once past all rows; larger ones are a product of tiles.
constexpr int64_t stream_batch = 8;

// How much a thread keeps in tiles at a time (at least one tile): these stay in L2.
constexpr int64_t tiles_together_bytes = 256 * 1024;

MaskedRows stream_arguments(const HostMask& mask, ScalarType storage, int64_t batch) {
  MaskedRows arguments{};
  arguments.storage = storage;
  arguments.plan = mask.plan();
  arguments.rank = mask.rank();
  arguments.batch = batch;
  return arguments;
}

// Calls kernel(arguments with a scratch for each thread, begin, end) for ranges of equal work.
template <typename Kernel>
void stream(const HostMask& mask, MaskedRows arguments, bool over_columns, bool needs_scratch, const Kernel& kernel) {
  const MaskPlan& plan = arguments.plan;
  const bool wide = arguments.storage == ScalarType::float64;
  const int64_t row_bytes = (plan.in_features * (wide ? 8 : 4) + 63) / 64 * 64;
  const bool worth = plan.in_features * plan.out_features * arguments.batch > parallel_work;
  const int64_t parts = worth ? at::get_num_threads() : 1;
  at::Tensor scratch;
  char* bytes = nullptr;
  if (needs_scratch) {
    scratch = empty({parts * row_bytes}, at::kByte);
    bytes = static_cast<char*>(scratch.mutable_data_ptr());
  }
  if (parts == 1) {
    arguments.scratch = bytes;
    kernel(arguments, 0, over_columns ? plan.in_features : plan.out_features);
    return;
  }
  const std::vector<int64_t> bounds = over_columns ? mask.split_columns(parts) : mask.split_rows(parts);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    MaskedRows own = arguments;
    for (int64_t i = begin; i < end; ++i) {
      own.scratch = bytes == nullptr ? nullptr : bytes + i * row_bytes;
      kernel(own, bounds[i], bounds[i + 1]);
    }
  });
}

// A matrix as tiles of lanes for the product kernels, with its columns in the order of the plan.
struct Tiles {
  Tiles(const at::Tensor& matrix, bool by_rows, const int32_t* order)
      : matrix(matrix), order(order), by_rows(by_rows), float64(matrix.scalar_type() == at::kDouble) {
    AR_FAST_CPU_KERNEL(masked_gemm_width)(float64, &width);
    const int64_t lanes = matrix.size(by_rows ? 0 : 1);
    steps = matrix.size(by_rows ? 1 : 0);
    count = (lanes + width - 1) / width;
    tile_bytes = steps * width * matrix.element_size();
  }
  void fill(void* out, int64_t begin, int64_t end) const {
    AR_FAST_CPU_KERNEL(masked_gemm_tiles)
    (float64, by_rows, matrix.const_data_ptr(), matrix.size(0), matrix.size(1), order, out, begin, end);
  }
  at::Tensor fill_all() const {
    const at::Tensor out = empty({count * tile_bytes}, at::kByte);
    char* memory = static_cast<char*>(out.mutable_data_ptr());
    parallel(matrix.numel() > parallel_work, count,
             [&](int64_t begin, int64_t end) { fill(memory + begin * tile_bytes, begin, end); });
    return out;
  }
  const at::Tensor& matrix;
  const int32_t* order;
  bool by_rows, float64;
  int64_t width = 0, steps, count, tile_bytes;
};

// Panels of about `panel` units each; the panels of a blocks plan are the mask's tiles.
std::vector<int64_t> make_panels(const HostMask& mask, int64_t units, int64_t tiles) {
  // The kernel takes six units together. If there are few panels they are made smaller, so that every thread has some.
  int64_t panel = masked_panel;
  if (mask.nested()) {
    panel = 60;
    while (panel > 12 && units / panel * tiles < 4 * at::get_num_threads()) panel -= 12;
  }
  std::vector<int64_t> bounds;
  for (int64_t unit = 0; unit < units; unit += panel) bounds.push_back(unit);
  bounds.push_back(units);
  return bounds;
}

// Where each thread's share of `panels` x `tiles` items begins: shares have about the same work, where cost(panel) is
// the work of one tile. Items are ordered by tile or by panel.
template <typename Cost>
std::vector<int64_t> share_out(int64_t panels, int64_t tiles, bool by_tile, int64_t batch, const Cost& cost) {
  std::vector<int64_t> ends(panels);
  int64_t total = 0;
  for (int64_t p = 0; p < panels; ++p) ends[p] = total += cost(p);
  const int64_t parts = total * batch > 8 * parallel_work ? at::get_num_threads() : 1;
  std::vector<int64_t> begins(parts + 1, panels * tiles);
  for (int64_t part = 0; part < parts; ++part) {
    int64_t done = total * tiles / parts * part;
    if (by_tile) {
      const int64_t tile = std::min(tiles, done / std::max<int64_t>(total, 1));
      done -= tile * total;
      begins[part] = tile * panels + (std::upper_bound(ends.begin(), ends.end(), done) - ends.begin());
    } else {
      const int64_t place = done / std::max<int64_t>(tiles, 1);
      const int64_t panel = std::upper_bound(ends.begin(), ends.end(), place) - ends.begin();
      if (panel == panels) continue;
      const int64_t before = panel == 0 ? 0 : ends[panel - 1];
      begins[part] = panel * tiles + (done - before * tiles) / std::max<int64_t>(ends[panel] - before, 1);
    }
  }
  begins[0] = 0;
  return begins;
}

// `bytes` of memory for each thread, on separate cache lines.
struct ThreadScratch {
  ThreadScratch(int64_t threads, int64_t each)
      : bytes((each + 63) / 64 * 64), memory(empty({threads * bytes}, at::kByte)) {}
  char* of(int64_t thread) const { return static_cast<char*>(memory.mutable_data_ptr()) + thread * bytes; }
  int64_t bytes;
  at::Tensor memory;
};

// The scratch of the kernels whose units are rows of the weight, a multiple of 64.
int64_t gemm_bytes(bool float64, int64_t steps) {
  int64_t bytes = 0;
  AR_FAST_CPU_KERNEL(masked_gemm_scratch)(float64, steps, &bytes);
  return (bytes + 63) / 64 * 64;
}

// y. If the weight is used directly, a thread goes through its panels with a few tiles in its own scratch, and then
// with the next tiles. If panels of the weight are packed, it goes panel by panel over tiles that were filled
// beforehand.
template <typename Cost>
void run_panels(const Tiles& tiles, bool packs, const std::vector<int64_t>& bounds, const MaskedGemm& arguments,
                const Cost& cost) {
  const int64_t panels = static_cast<int64_t>(bounds.size()) - 1;
  const bool by_tile = !packs;
  // For each pass over the weight as many tiles as stay in L2, but some for every thread.
  const int64_t most = std::min(tiles_together_bytes / std::max<int64_t>(tiles.tile_bytes, 1),
                                tiles.count / at::get_num_threads());
  const int64_t passes = by_tile ? (tiles.count + std::max<int64_t>(most, 1) - 1) / std::max<int64_t>(most, 1)
                                 : tiles.count;
  const int64_t together = (tiles.count + passes - 1) / passes;
  const std::vector<int64_t> begins = share_out(panels, passes, by_tile, arguments.batch, cost);
  const int64_t parts = static_cast<int64_t>(begins.size()) - 1;
  const int64_t kernel_bytes = gemm_bytes(tiles.float64, packs ? tiles.steps : 0);
  const ThreadScratch scratch(parts, kernel_bytes + (by_tile ? together * tiles.tile_bytes : 0));
  const at::Tensor filled = by_tile ? at::Tensor() : tiles.fill_all();
  parallel(parts > 1, parts, [&](int64_t first_part, int64_t last_part) {
    for (int64_t part = first_part; part < last_part; ++part) {
      MaskedGemm own = arguments;
      own.scratch = scratch.of(part);
      char* tile_memory = scratch.of(part) + kernel_bytes;
      int64_t current = -1;
      for (int64_t item = begins[part]; item < begins[part + 1];) {
        if (by_tile) {
          const int64_t tile = item / panels * together, panel = item % panels;
          const int64_t end = std::min(tile + together, tiles.count);
          if (tile != current) tiles.fill(tile_memory, tile, end);
          current = tile;
          own.tiles = tile_memory;
          AR_FAST_CPU_KERNEL(masked_gemm_y)
          (own, {bounds[panel], bounds[panel + 1], tile, end});
          ++item;
        } else {
          const int64_t panel = item / tiles.count, stop = std::min(begins[part + 1], (panel + 1) * tiles.count);
          const int64_t tile = item - panel * tiles.count;
          own.tiles = static_cast<const char*>(filled.const_data_ptr()) + tile * tiles.tile_bytes;
          AR_FAST_CPU_KERNEL(masked_gemm_y)
          (own, {bounds[panel], bounds[panel + 1], tile, stop - panel * tiles.count});
          item = stop;
        }
      }
    }
  });
}

// y or dX with `features` of the result as lanes: a thread multiplies all its rows by some tiles of features, and then
// by the next tiles. cost(first feature, last feature of a tile) is the length of its sum.
template <typename Cost, typename Kernel>
void run_lanes(const MaskedGemm& arguments, bool float64, int64_t features, int64_t steps, const Cost& cost,
               const Kernel& kernel) {
  int64_t width = 0, bytes = 0;
  AR_FAST_CPU_KERNEL(masked_gemm_width)(float64, &width);
  const int64_t tiles = (features + width - 1) / width, tile_bytes = steps * width * (float64 ? 8 : 4);
  const int64_t most = std::max<int64_t>(1, tiles_together_bytes / std::max<int64_t>(tile_bytes, 1));
  const int64_t together = std::min(most, tiles);
  AR_FAST_CPU_KERNEL(masked_gemm_lanes_scratch)(float64, steps, together, &bytes);
  const int64_t groups = (arguments.batch + masked_gemm_rows - 1) / masked_gemm_rows;
  const auto end_of = [&](int64_t tile) { return std::min((tile + 1) * width, features); };
  const std::vector<int64_t> begins = share_out(tiles, groups, false, arguments.batch, [&](int64_t tile) {
    return width * (cost(tile * width, end_of(tile) - 1) + 8);
  });
  const int64_t parts = static_cast<int64_t>(begins.size()) - 1;
  const ThreadScratch scratch(parts, bytes);
  parallel(parts > 1, parts, [&](int64_t first_part, int64_t last_part) {
    for (int64_t part = first_part; part < last_part; ++part) {
      MaskedGemm own = arguments;
      own.scratch = scratch.of(part);
      for (int64_t item = begins[part]; item < begins[part + 1];) {
        const int64_t tile = item / groups, group = item - tile * groups, left = begins[part + 1] - item;
        const int64_t whole = group == 0 ? std::min(together, left / groups) : 0;
        const int64_t last = tile + std::max<int64_t>(whole, 1) - 1;
        const int64_t end = whole > 0 ? groups : std::min(groups, group + left);
        kernel(own, MaskedGemmPart{tile * width, end_of(last), group, end});
        item += whole > 0 ? whole * groups : end - group;
      }
    }
  });
}

// Whether y has features as lanes. With rows as lanes, every row of x and of y is transposed, and weights that cannot
// be used directly are packed. With features as lanes, the weight is transposed, and all lanes of a tile go as far as
// the last of them sees.
bool features_as_lanes(const HostMask& mask, int64_t batch, bool packs) {
  const int64_t out_features = mask.plan().out_features, in_features = mask.plan().in_features;
  if (mask.columns().defined() && in_features > in_place_features) return false;
  int64_t width = 0;
  AR_FAST_CPU_KERNEL(masked_gemm_width)(false, &width);
  const int64_t weights = out_features * in_features;
  const int64_t rows_cost = batch * (in_features + out_features) + (packs ? weights : 0);
  return (mask.sorted() ? 1 : 2) * weights + batch * in_features * width / 32 < rows_cost;
}

}  // namespace

at::Tensor fused_forward(const HostMask& mask, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                         Activation activation) {
  const int64_t batch = x.size(0), in_features = mask.plan().in_features, out_features = mask.plan().out_features;
  const void* b = bias.defined() ? bias.const_data_ptr() : nullptr;
  at::Tensor y = empty({batch, out_features}, x.scalar_type());
  if (batch <= stream_batch) {
    MaskedRows arguments = stream_arguments(mask, storage_type(weight.scalar_type()), batch);
    arguments.input = x.const_data_ptr();
    arguments.weight = weight.const_data_ptr();
    arguments.bias = b;
    arguments.activation = activation;
    arguments.output = y.mutable_data_ptr();
    const bool packs = !mask.nested() || mask.rank() != nullptr || weight.scalar_type() != x.scalar_type();
    stream(mask, arguments, false, packs, AR_FAST_CPU_KERNEL(masked_forward_rows));
    return y;
  }
  const bool same_type = weight.scalar_type() == x.scalar_type(), float64 = x.scalar_type() == at::kDouble;
  const bool unpacked = mask.nested() && same_type && (mask.rank() == nullptr || in_features <= in_place_features);
  MaskedGemm arguments{storage_type(weight.scalar_type()), mask.plan(), nullptr, batch, x.const_data_ptr(),
                       weight.const_data_ptr(), unpacked, b, activation, y.mutable_data_ptr(), nullptr, false};
  const auto extent = [&](int64_t row) { return mask.nested() ? mask.extent(row) : in_features; };
  if (features_as_lanes(mask, batch, !unpacked)) {
    arguments.unpacked = false;
    run_lanes(arguments, float64, out_features, in_features, [&](int64_t, int64_t last) { return extent(last); },
              AR_FAST_CPU_KERNEL(masked_gemm_y_lanes));
    return y;
  }
  const Tiles tiles(x, true, unpacked ? nullptr : mask.plan().columns);
  const std::vector<int64_t> bounds = make_panels(mask, out_features, tiles.count);
  run_panels(tiles, !unpacked, bounds, arguments,
             [&](int64_t p) { return (bounds[p + 1] - bounds[p]) * (extent(bounds[p + 1] - 1) + 8); });
  return y;
}

at::Tensor fused_grad_input(const HostMask& mask, const at::Tensor& dy, const at::Tensor& weight) {
  const int64_t batch = dy.size(0), in_features = mask.plan().in_features, out_features = mask.plan().out_features;
  at::Tensor dx = empty({batch, in_features}, dy.scalar_type());
  if (batch <= stream_batch) {
    MaskedRows arguments = stream_arguments(mask, storage_type(weight.scalar_type()), batch);
    arguments.weight = weight.const_data_ptr();
    arguments.grad_output = dy.const_data_ptr();
    arguments.output = dx.mutable_data_ptr();
    const bool packs = !mask.nested() || mask.rank() != nullptr || weight.scalar_type() != dy.scalar_type();
    stream(mask, arguments, true, packs, AR_FAST_CPU_KERNEL(masked_grad_input_columns));
    return dx;
  }
  const std::vector<int32_t> starts = mask.nested() ? mask.starts() : std::vector<int32_t>();
  const bool in_place = mask.nested() && mask.sorted() && weight.scalar_type() == dy.scalar_type();
  const bool sorts = mask.rows().defined() && out_features > in_place_features;
  const at::Tensor rows = sorts ? sort_features(dy, mask.rows()) : dy;
  const MaskedGemm arguments{storage_type(weight.scalar_type()), mask.plan(), starts.data(), batch,
                             rows.const_data_ptr(), weight.const_data_ptr(), in_place, nullptr, Activation::none,
                             dx.mutable_data_ptr(), nullptr, sorts};
  run_lanes(
      arguments, dy.scalar_type() == at::kDouble, in_features, out_features,
      [&](int64_t first, int64_t) { return out_features - (mask.nested() ? starts[first] : 0); },
      AR_FAST_CPU_KERNEL(masked_gemm_dx_lanes));
  return dx;
}

at::Tensor fused_grad_weight(const HostMask& mask, const at::Tensor& dy, const at::Tensor& x,
                             at::ScalarType storage) {
  const MaskPlan& plan = mask.plan();
  const int64_t batch = x.size(0), in_features = plan.in_features, out_features = plan.out_features;
  const ScalarType type = storage_type(storage);
  at::Tensor dw = empty({out_features, in_features}, storage);
  if (batch <= stream_batch) {
    MaskedRows arguments = stream_arguments(mask, type, batch);
    arguments.input = x.const_data_ptr();
    arguments.grad_output = dy.const_data_ptr();
    arguments.output = dw.mutable_data_ptr();
    stream(mask, arguments, false, true, AR_FAST_CPU_KERNEL(masked_grad_weight_rows));
    return dw;
  }
  const Tiles tiles(x, false, plan.columns);
  const at::Tensor filled = tiles.fill_all();
  const at::Tensor units = empty({out_features, batch}, dy.scalar_type());
  parallel(dy.numel() > parallel_work, (out_features + 15) / 16, [&](int64_t begin, int64_t end) {
    AR_FAST_CPU_KERNEL(masked_gemm_transpose)
    (tiles.float64, dy.const_data_ptr(), batch, out_features, begin * 16, std::min(end * 16, out_features),
     units.mutable_data_ptr());
  });
  const ScalarType compute = storage_type(x.scalar_type());
  const bool in_place = type == compute && mask.sorted();
  const MaskedGemm arguments{compute, plan, nullptr, batch, filled.const_data_ptr(), units.const_data_ptr(), false,
                             nullptr, Activation::none, nullptr, nullptr, false};
  const std::vector<int64_t> bounds = make_panels(mask, out_features, 1);
  const std::vector<int64_t> begins =
      share_out(static_cast<int64_t>(bounds.size()) - 1, 1, false, batch, [&](int64_t p) {
        return (bounds[p + 1] - bounds[p]) * ((mask.nested() ? mask.extent(bounds[p + 1] - 1) : in_features) + 8);
      });
  const int64_t parts = static_cast<int64_t>(begins.size()) - 1;
  const int64_t row_bytes = in_features * static_cast<int64_t>(x.element_size());
  // A thread's panel of dW is stored after the kernel's scratch until it is written in the op's order and dtype.
  const int64_t kernel_bytes = gemm_bytes(tiles.float64, 0);
  const ThreadScratch scratch(parts, kernel_bytes + (in_place ? 0 : masked_panel * row_bytes));
  parallel(parts > 1, parts, [&](int64_t first_part, int64_t last_part) {
    for (int64_t part = first_part; part < last_part; ++part) {
      MaskedGemm own = arguments;
      own.scratch = scratch.of(part);
      for (int64_t panel = begins[part]; panel < begins[part + 1]; ++panel) {
        const int64_t begin = bounds[panel], end = bounds[panel + 1];
        if (in_place) {
          AR_FAST_CPU_KERNEL(masked_gemm_dw)
          (own, begin, end, static_cast<char*>(dw.mutable_data_ptr()) + begin * row_bytes, in_features);
          AR_FAST_CPU_KERNEL(masked_clear)(type, plan, begin, end, dw.mutable_data_ptr());
          continue;
        }
        char* rows = scratch.of(part) + kernel_bytes;
        AR_FAST_CPU_KERNEL(masked_gemm_dw)(own, begin, end, rows, in_features);
        AR_FAST_CPU_KERNEL(masked_unpack)
        (type, plan, mask.rank(), rows, {begin, end, 0, in_features}, dw.mutable_data_ptr());
      }
    }
  });
  return dw;
}

}  // namespace ar_fast
