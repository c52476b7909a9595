// masked_linear through our own kernels.
#include <algorithm>

#include "../../kernels/cpu/masked_gemm_cpu.h"
#include "masked_linear_paths.h"

namespace ar_fast {
namespace {

// Batches up to here stream the weight once past all rows; larger ones are a product of tiles.
constexpr int64_t stream_batch = 8;

MaskedRows stream_arguments(const HostMask& mask, ScalarType storage, int64_t batch) {
  MaskedRows arguments{};
  arguments.storage = storage;
  arguments.plan = mask.plan();
  arguments.rank = mask.rank();
  arguments.batch = batch;
  return arguments;
}

// Calls kernel(arguments with a scratch of its own, begin, end) for ranges of equal work.
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

// A matrix as tiles of lanes for the product kernels, its columns in the order of the plan.
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

// Panels of units of about `panel` each; those of a blocks plan are the mask's tiles.
std::vector<int64_t> make_panels(const HostMask& mask, int64_t units, int64_t tiles) {
  // Six units run together in the kernel. Few panels are made smaller, so that every thread has some.
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

// Where each thread's share of `panels` x `tiles` items begins: shares of about the same work, cost(panel) for one
// tile. Items run by tile or by panel.
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

// Scratch of each thread, and `extra` bytes behind the kernel's own.
struct ThreadScratch {
  ThreadScratch(int64_t threads, bool float64, int64_t steps, int64_t extra) {
    AR_FAST_CPU_KERNEL(masked_gemm_scratch)(float64, steps, &kernel_bytes);
    kernel_bytes = (kernel_bytes + 63) / 64 * 64;
    bytes = kernel_bytes + (extra + 63) / 64 * 64;
    memory = empty({threads * bytes}, at::kByte);
  }
  char* of(int64_t thread) const { return static_cast<char*>(memory.mutable_data_ptr()) + thread * bytes; }
  int64_t kernel_bytes = 0, bytes;
  at::Tensor memory;
};

// y or dX: a thread goes through its panels tile by tile, with the tile in its own scratch, where the weight is used as
// it lies; where panels of it are packed, panel by panel, past tiles that were filled beforehand.
template <typename Cost, typename Kernel>
void run_product(const Tiles& tiles, bool packs, const std::vector<int64_t>& bounds, const MaskedGemm& arguments,
                 const Cost& cost, const Kernel& kernel) {
  const int64_t panels = static_cast<int64_t>(bounds.size()) - 1;
  const bool by_tile = !packs;
  const std::vector<int64_t> begins = share_out(panels, tiles.count, by_tile, arguments.batch, cost);
  const int64_t parts = static_cast<int64_t>(begins.size()) - 1;
  const ThreadScratch scratch(parts, tiles.float64, packs ? tiles.steps : 0, by_tile ? tiles.tile_bytes : 0);
  const at::Tensor filled = by_tile ? at::Tensor() : tiles.fill_all();
  parallel(parts > 1, parts, [&](int64_t first_part, int64_t last_part) {
    for (int64_t part = first_part; part < last_part; ++part) {
      MaskedGemm own = arguments;
      own.scratch = scratch.of(part);
      char* tile_memory = scratch.of(part) + scratch.kernel_bytes;
      int64_t current = -1;
      for (int64_t item = begins[part]; item < begins[part + 1];) {
        if (by_tile) {
          const int64_t tile = item / panels, panel = item % panels;
          if (tile != current) tiles.fill(tile_memory, tile, tile + 1);
          current = tile;
          own.tiles = tile_memory;
          kernel(own, MaskedGemmPart{bounds[panel], bounds[panel + 1], tile, tile + 1});
          ++item;
        } else {
          const int64_t panel = item / tiles.count, stop = std::min(begins[part + 1], (panel + 1) * tiles.count);
          const int64_t tile = item - panel * tiles.count;
          own.tiles = static_cast<const char*>(filled.const_data_ptr()) + tile * tiles.tile_bytes;
          kernel(own, MaskedGemmPart{bounds[panel], bounds[panel + 1], tile, stop - panel * tiles.count});
          item = stop;
        }
      }
    }
  });
}

// dX from a staircase that lies in place: a thread takes columns of the weight, a tile's lanes at a time, past all rows.
void grad_input_in_place(const HostMask& mask, MaskedGemm arguments, bool float64) {
  const int64_t in_features = mask.plan().in_features, out_features = mask.plan().out_features;
  int64_t width = 0;
  AR_FAST_CPU_KERNEL(masked_gemm_width)(float64, &width);
  const int64_t tiles = (in_features + width - 1) / width;
  const int64_t groups = (arguments.batch + masked_gemm_rows - 1) / masked_gemm_rows;
  const std::vector<int64_t> begins = share_out(tiles, groups, false, arguments.batch, [&](int64_t tile) {
    return width * (out_features - arguments.starts[tile * width] + 8);
  });
  const int64_t parts = static_cast<int64_t>(begins.size()) - 1;
  const ThreadScratch scratch(parts, float64, 0, 0);
  parallel(parts > 1, parts, [&](int64_t first_part, int64_t last_part) {
    for (int64_t part = first_part; part < last_part; ++part) {
      MaskedGemm own = arguments;
      own.scratch = scratch.of(part);
      for (int64_t item = begins[part]; item < begins[part + 1];) {
        const int64_t tile = item / groups, stop = std::min(begins[part + 1], (tile + 1) * groups);
        AR_FAST_CPU_KERNEL(masked_gemm_dx_in_place)
        (own, {tile * width, std::min((tile + 1) * width, in_features), item - tile * groups, stop - tile * groups});
        item = stop;
      }
    }
  });
}

}  // namespace

at::Tensor fused_forward(const HostMask& mask, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const int64_t batch = x.size(0), in_features = mask.plan().in_features, out_features = mask.plan().out_features;
  const void* b = bias.defined() ? bias.const_data_ptr() : nullptr;
  const bool packs = !mask.nested() || mask.rank() != nullptr || weight.scalar_type() != x.scalar_type();
  at::Tensor y = empty({batch, out_features}, x.scalar_type());
  if (batch <= stream_batch) {
    MaskedRows arguments = stream_arguments(mask, storage_type(weight.scalar_type()), batch);
    arguments.input = x.const_data_ptr();
    arguments.weight = weight.const_data_ptr();
    arguments.bias = b;
    arguments.output = y.mutable_data_ptr();
    stream(mask, arguments, false, packs, AR_FAST_CPU_KERNEL(masked_forward_rows));
    return y;
  }
  const Tiles tiles(x, true, mask.plan().columns);
  const MaskedGemm arguments{storage_type(weight.scalar_type()), mask.plan(), nullptr, batch, nullptr,
                             weight.const_data_ptr(), b, y.mutable_data_ptr(), nullptr};
  const std::vector<int64_t> bounds = make_panels(mask, out_features, tiles.count);
  run_product(
      tiles, packs, bounds, arguments,
      [&](int64_t p) {
        return (bounds[p + 1] - bounds[p]) * ((mask.nested() ? mask.extent(bounds[p + 1] - 1) : in_features) + 8);
      },
      AR_FAST_CPU_KERNEL(masked_gemm_y));
  return y;
}

at::Tensor fused_grad_input(const HostMask& mask, const at::Tensor& dy, const at::Tensor& weight) {
  const int64_t batch = dy.size(0), in_features = mask.plan().in_features, out_features = mask.plan().out_features;
  const bool packs = !mask.nested() || mask.rank() != nullptr || weight.scalar_type() != dy.scalar_type();
  at::Tensor dx = empty({batch, in_features}, dy.scalar_type());
  if (batch <= stream_batch) {
    MaskedRows arguments = stream_arguments(mask, storage_type(weight.scalar_type()), batch);
    arguments.weight = weight.const_data_ptr();
    arguments.grad_output = dy.const_data_ptr();
    arguments.output = dx.mutable_data_ptr();
    stream(mask, arguments, true, packs, AR_FAST_CPU_KERNEL(masked_grad_input_columns));
    return dx;
  }
  const std::vector<int32_t> starts = mask.nested() ? mask.starts() : std::vector<int32_t>();
  if (mask.nested() && mask.sorted() && weight.scalar_type() == dy.scalar_type()) {
    const MaskedGemm arguments{storage_type(weight.scalar_type()), mask.plan(), starts.data(), batch,
                               dy.const_data_ptr(), weight.const_data_ptr(), nullptr, dx.mutable_data_ptr(), nullptr};
    grad_input_in_place(mask, arguments, dy.scalar_type() == at::kDouble);
    return dx;
  }
  const Tiles tiles(dy, true, mask.plan().rows);
  const MaskedGemm arguments{storage_type(weight.scalar_type()), mask.plan(), starts.data(), batch, nullptr,
                             weight.const_data_ptr(), nullptr, dx.mutable_data_ptr(), nullptr};
  const std::vector<int64_t> bounds = make_panels(mask, in_features, tiles.count);
  run_product(
      tiles, true, bounds, arguments,
      [&](int64_t p) {
        return (bounds[p + 1] - bounds[p]) * (out_features - (mask.nested() ? starts[bounds[p]] : 0) + 8);
      },
      AR_FAST_CPU_KERNEL(masked_gemm_dx));
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
  const at::Tensor units = sort_features(dy, mask.rows()).t().contiguous();
  const ScalarType compute = storage_type(x.scalar_type());
  const bool in_place = type == compute && mask.sorted();
  const MaskedGemm arguments{compute, plan, nullptr, batch, filled.const_data_ptr(), units.const_data_ptr(), nullptr,
                             nullptr, nullptr};
  const std::vector<int64_t> bounds = make_panels(mask, out_features, 1);
  const std::vector<int64_t> begins =
      share_out(static_cast<int64_t>(bounds.size()) - 1, 1, false, batch, [&](int64_t p) {
        return (bounds[p + 1] - bounds[p]) * ((mask.nested() ? mask.extent(bounds[p + 1] - 1) : in_features) + 8);
      });
  const int64_t parts = static_cast<int64_t>(begins.size()) - 1;
  const int64_t row_bytes = in_features * static_cast<int64_t>(x.element_size());
  // A thread's panel of dW lies behind the kernel's scratch until it is written in the op's order and dtype.
  const ThreadScratch scratch(parts, tiles.float64, 0, in_place ? 0 : masked_panel * row_bytes);
  parallel(parts > 1, parts, [&](int64_t first_part, int64_t last_part) {
    for (int64_t part = first_part; part < last_part; ++part) {
      MaskedGemm own = arguments;
      own.scratch = scratch.of(part);
      for (int64_t panel = begins[part]; panel < begins[part + 1]; ++panel) {
        const int64_t begin = bounds[panel], end = bounds[panel + 1];
        if (in_place) {
          AR_FAST_CPU_KERNEL(masked_gemm_dw)
          (own, begin, end, static_cast<char*>(dw.mutable_data_ptr()) + begin * row_bytes, in_features);
          AR_FAST_CPU_KERNEL(masked_clear)(type, plan, nullptr, begin, end, dw.mutable_data_ptr());
          continue;
        }
        char* rows = scratch.of(part) + scratch.kernel_bytes;
        AR_FAST_CPU_KERNEL(masked_gemm_dw)(own, begin, end, rows, in_features);
        AR_FAST_CPU_KERNEL(masked_unpack)
        (type, plan, mask.rank(), rows, {begin, end, 0, in_features}, dw.mutable_data_ptr());
      }
    }
  });
  return dw;
}

}  // namespace ar_fast
