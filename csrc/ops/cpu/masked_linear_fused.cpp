// masked_linear through our own kernels.
#include <algorithm>
#include <atomic>

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

// `bytes` of memory for each thread, on separate cache lines.
struct ThreadScratch {
  ThreadScratch(int64_t threads, int64_t each)
      : bytes((each + 63) / 64 * 64), memory(empty({threads * bytes}, at::kByte)) {}
  char* of(int64_t thread) const { return static_cast<char*>(memory.mutable_data_ptr()) + thread * bytes; }
  int64_t bytes;
  at::Tensor memory;
};

// A piece of work for one thread.
struct Item {
  MaskedGemmPart part;
  int64_t work;                    // multiply-adds
  int64_t place = 0;               // among the pieces before they are sorted
};

// With so many items each, the threads end at about the same time, even if one of them is slowed down.
constexpr int64_t items_per_thread = 4;

// Calls body(part, the thread's scratch) for all items. A thread takes the next item when it is done with one, the
// largest first, so that only small ones are left at the end.
template <typename Body>
void run_items(std::vector<Item> items, int64_t scratch_bytes, const Body& body) {
  const int64_t count = static_cast<int64_t>(items.size());
  int64_t work = 0;
  for (int64_t i = 0; i < count; ++i) {
    items[i].place = i;
    work += items[i].work;
  }
  const int64_t threads = work > 8 * parallel_work ? std::min<int64_t>(at::get_num_threads(), count) : 1;
  if (threads > 1) {
    // As std::stable_sort does, of whose insides in libstdc++ clang warns.
    std::sort(items.begin(), items.end(),
              [](const Item& a, const Item& b) { return a.work != b.work ? a.work > b.work : a.place < b.place; });
  }
  const ThreadScratch scratch(threads, scratch_bytes);
  std::atomic<int64_t> next{0};
  const auto take = [&] { return next.fetch_add(1, std::memory_order_relaxed); };
  parallel(threads > 1, threads, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      for (int64_t i = take(); i < count; i = take()) body(items[i].part, scratch.of(thread));
    }
  });
}

// The scratch of the kernels whose units are rows of the weight, a multiple of 64.
int64_t gemm_bytes(bool float64, int64_t steps) {
  int64_t bytes = 0;
  AR_FAST_CPU_KERNEL(masked_gemm_scratch)(float64, steps, &bytes);
  return (bytes + 63) / 64 * 64;
}

// y. If the weight is used directly and there are many tiles, a thread fills a few of them in its own scratch and goes
// through all panels. Otherwise tiles are filled beforehand, and an item is one panel. work(panel) is that of one row.
template <typename Work>
void run_panels(const Tiles& tiles, bool packs, const std::vector<int64_t>& bounds, const MaskedGemm& arguments,
                const Work& work) {
  const int64_t panels = static_cast<int64_t>(bounds.size()) - 1, most_items = items_per_thread * at::get_num_threads();
  const int64_t cached = std::max<int64_t>(1, tiles_together_bytes / std::max<int64_t>(tiles.tile_bytes, 1));
  const bool own_tiles = !packs && tiles.count >= most_items * cached;
  const int64_t kernel_bytes = gemm_bytes(tiles.float64, packs ? tiles.steps : 0);
  std::vector<Item> items;
  // A panel that is packed serves as many tiles as possible; a weight that is read directly, those that stay in L2.
  const int64_t even = tiles.count * panels / most_items;
  const int64_t together =
      own_tiles ? cached : std::clamp<int64_t>(packs ? even : std::min(even, cached), 1, tiles.count);
  int64_t all_panels = 0;
  for (int64_t p = 0; p < panels; ++p) all_panels += work(p);
  for (int64_t tile = 0; tile < tiles.count; tile += together) {
    const int64_t end = std::min(tile + together, tiles.count), rows = (end - tile) * tiles.width;
    if (own_tiles) {
      items.push_back({{0, bounds.back(), tile, end}, rows * all_panels});
      continue;
    }
    for (int64_t p = 0; p < panels; ++p) items.push_back({{bounds[p], bounds[p + 1], tile, end}, rows * work(p)});
  }
  const at::Tensor filled = own_tiles ? at::Tensor() : tiles.fill_all();
  const int64_t own_bytes = own_tiles ? together * tiles.tile_bytes : 0;
  run_items(items, kernel_bytes + own_bytes, [&](const MaskedGemmPart& part, char* scratch) {
    MaskedGemm own = arguments;
    own.scratch = scratch;
    if (own_tiles) {
      tiles.fill(scratch + kernel_bytes, part.tile_begin, part.tile_end);
      own.tiles = scratch + kernel_bytes;
    } else {
      own.tiles = static_cast<const char*>(filled.const_data_ptr()) + part.tile_begin * tiles.tile_bytes;
    }
    for (int64_t p = 0; p < panels; ++p) {
      if (bounds[p] < part.unit_begin || bounds[p] >= part.unit_end) continue;
      AR_FAST_CPU_KERNEL(masked_gemm_y)(own, {bounds[p], bounds[p + 1], part.tile_begin, part.tile_end});
    }
  });
}

// y or dX with `features` of the result as lanes: an item is some tiles of features and all rows, or one tile and some
// of the rows. steps_of(first feature, last feature of a tile) is the length of its sum.
template <typename Steps, typename Kernel>
void run_lanes(const MaskedGemm& arguments, bool float64, int64_t features, int64_t steps, const Steps& steps_of,
               const Kernel& kernel) {
  int64_t width = 0, bytes = 0;
  AR_FAST_CPU_KERNEL(masked_gemm_width)(float64, &width);
  const int64_t tiles = (features + width - 1) / width, tile_bytes = steps * width * (float64 ? 8 : 4);
  const int64_t threads = at::get_num_threads(), most_items = threads == 1 ? 1 : items_per_thread * threads;
  const int64_t cached = std::max<int64_t>(1, tiles_together_bytes / std::max<int64_t>(tile_bytes, 1));
  const int64_t together = std::clamp<int64_t>(tiles / most_items, 1, cached);
  AR_FAST_CPU_KERNEL(masked_gemm_lanes_scratch)(float64, steps, together, &bytes);
  const int64_t groups = (arguments.batch + masked_gemm_rows - 1) / masked_gemm_rows;
  const auto end_of = [&](int64_t tile) { return std::min((tile + 1) * width, features); };
  std::vector<int64_t> work(tiles);
  int64_t total = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    total += work[tile] = arguments.batch * width * (steps_of(tile * width, end_of(tile) - 1) + 8);
  }
  std::vector<Item> items;
  for (int64_t tile = 0; tile < tiles; tile += together) {
    const int64_t last = std::min(tile + together, tiles);
    int64_t here = 0;
    for (int64_t t = tile; t < last; ++t) here += work[t];
    // Every piece of the rows packs the tile again, so a piece has many rows, unless threads would have no work.
    constexpr int64_t many_groups = 16;
    const int64_t needed = (here * threads + total - 1) / std::max<int64_t>(total, 1);
    const int64_t pieces = together > 1 || threads == 1
                               ? 1
                               : std::min({here * most_items / std::max<int64_t>(total, 1),
                                           std::max(groups / many_groups, needed), groups});
    const int64_t piece = (groups + std::max<int64_t>(pieces, 1) - 1) / std::max<int64_t>(pieces, 1);
    for (int64_t group = 0; group < groups; group += piece) {
      const int64_t end = std::min(group + piece, groups);
      items.push_back({{tile * width, end_of(last - 1), group, end}, here * (end - group) / groups});
    }
  }
  run_items(items, bytes, [&](const MaskedGemmPart& part, char* scratch) {
    MaskedGemm own = arguments;
    own.scratch = scratch;
    kernel(own, part);
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
                         Activation activation, std::atomic<bool>& undefined) {
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
    undefined = true;
    return y;
  }
  const bool same_type = weight.scalar_type() == x.scalar_type(), float64 = x.scalar_type() == at::kDouble;
  const bool unpacked = mask.nested() && same_type && (mask.rank() == nullptr || in_features <= in_place_features);
  MaskedGemm arguments{storage_type(weight.scalar_type()), mask.plan(), nullptr, batch, x.const_data_ptr(),
                       weight.const_data_ptr(), unpacked, b, activation, y.mutable_data_ptr(), nullptr, false,
                       &undefined};
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

at::Tensor fused_grad_input(const HostMask& mask, const at::Tensor& dy, const at::Tensor& weight,
                            std::atomic<bool>& undefined) {
  const int64_t batch = dy.size(0), in_features = mask.plan().in_features, out_features = mask.plan().out_features;
  at::Tensor dx = empty({batch, in_features}, dy.scalar_type());
  if (batch <= stream_batch) {
    MaskedRows arguments = stream_arguments(mask, storage_type(weight.scalar_type()), batch);
    arguments.weight = weight.const_data_ptr();
    arguments.grad_output = dy.const_data_ptr();
    arguments.output = dx.mutable_data_ptr();
    const bool packs = !mask.nested() || mask.rank() != nullptr || weight.scalar_type() != dy.scalar_type();
    stream(mask, arguments, true, packs, AR_FAST_CPU_KERNEL(masked_grad_input_columns));
    undefined = true;
    return dx;
  }
  const std::vector<int32_t> starts = mask.nested() ? mask.starts() : std::vector<int32_t>();
  const bool in_place = mask.nested() && mask.sorted() && weight.scalar_type() == dy.scalar_type();
  const bool sorts = mask.rows().defined() && out_features > in_place_features;
  const at::Tensor rows = sorts ? sort_features(dy, mask.rows()) : dy;
  const MaskedGemm arguments{storage_type(weight.scalar_type()), mask.plan(), starts.data(), batch,
                             rows.const_data_ptr(), weight.const_data_ptr(), in_place, nullptr, Activation::none,
                             dx.mutable_data_ptr(), nullptr, sorts, &undefined};
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
                             nullptr, Activation::none, nullptr, nullptr, false, nullptr};
  const int64_t row_bytes = in_features * static_cast<int64_t>(x.element_size());
  const std::vector<int64_t> bounds = make_panels(mask, out_features, 1);
  std::vector<Item> items;
  for (size_t panel = 0; panel + 1 < bounds.size(); ++panel) {
    const int64_t begin = bounds[panel], end = bounds[panel + 1];
    const int64_t columns = mask.nested() ? mask.extent(end - 1) : in_features;
    items.push_back({{begin, end, 0, tiles.count}, (end - begin) * (columns + 8) * batch});
  }
  // A thread's panel of dW is stored after the kernel's scratch until it is written in the op's order and dtype.
  const int64_t kernel_bytes = gemm_bytes(tiles.float64, 0);
  run_items(items, kernel_bytes + (in_place ? 0 : masked_panel * row_bytes),
            [&](const MaskedGemmPart& part, char* scratch) {
    const int64_t begin = part.unit_begin, end = part.unit_end;
    MaskedGemm own = arguments;
    own.scratch = scratch;
    char* rows = in_place ? static_cast<char*>(dw.mutable_data_ptr()) + begin * row_bytes : scratch + kernel_bytes;
    AR_FAST_CPU_KERNEL(masked_gemm_dw)(own, begin, end, rows, in_features);
    if (in_place) {
      AR_FAST_CPU_KERNEL(masked_clear)(type, plan, begin, end, dw.mutable_data_ptr());
    } else {
      AR_FAST_CPU_KERNEL(masked_unpack)
      (type, plan, mask.rank(), rows, {begin, end, 0, in_features}, dw.mutable_data_ptr());
    }
  });
  return dw;
}

}  // namespace ar_fast
