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
void stream(const HostMask& mask, MaskedRows arguments, bool over_columns, const Kernel& kernel) {
  const MaskPlan& plan = arguments.plan;
  const bool wide = arguments.storage == ScalarType::float64;
  const int64_t row_bytes = (plan.in_features * (wide ? 8 : 4) + 63) / 64 * 64;
  const bool worth = plan.in_features * plan.out_features * arguments.batch > parallel_work;
  const int64_t parts = worth ? at::get_num_threads() : 1;
  const at::Tensor scratch = empty({parts * row_bytes}, at::kByte);
  char* bytes = static_cast<char*>(scratch.mutable_data_ptr());
  if (parts == 1) {
    arguments.scratch = bytes;
    kernel(arguments, 0, over_columns ? plan.in_features : plan.out_features);
    return;
  }
  const std::vector<int64_t> bounds = over_columns ? mask.split_columns(parts) : mask.split_rows(parts);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    MaskedRows own = arguments;
    for (int64_t i = begin; i < end; ++i) {
      own.scratch = bytes + i * row_bytes;
      kernel(own, bounds[i], bounds[i + 1]);
    }
  });
}

// A matrix as tiles of lanes for the product kernels.
at::Tensor make_tiles(const at::Tensor& matrix, bool by_rows) {
  const bool float64 = matrix.scalar_type() == at::kDouble;
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  int64_t width = 0;
  AR_FAST_CPU_KERNEL(masked_gemm_width)(float64, &width);
  const int64_t tiles = ((by_rows ? rows : columns) + width - 1) / width, steps = by_rows ? columns : rows;
  const at::Tensor out = empty({tiles, steps, width}, matrix.scalar_type());
  parallel(rows * columns > parallel_work, tiles, [&](int64_t begin, int64_t end) {
    AR_FAST_CPU_KERNEL(masked_gemm_tiles)
    (float64, by_rows, matrix.const_data_ptr(), rows, columns, out.mutable_data_ptr(), begin, end);
  });
  return out;
}

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

// Calls kernel(part of the work, thread's scratch), about the same work per thread. cost(panel) is that of one tile.
template <typename Cost, typename Kernel>
void run_panels(const std::vector<int64_t>& bounds, int64_t tiles, int64_t steps, bool float64, int64_t batch,
                const Cost& cost, const Kernel& kernel) {
  const int64_t panels = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<int64_t> ends(panels);
  int64_t total = 0;
  for (int64_t p = 0; p < panels; ++p) ends[p] = total += cost(p) * (bounds[p + 1] - bounds[p]) * tiles;
  const bool worth = total / std::max<int64_t>(tiles, 1) * batch > 8 * parallel_work;
  const int64_t parts = worth ? std::min<int64_t>(at::get_num_threads(), panels * tiles) : 1;
  int64_t bytes = 0;
  AR_FAST_CPU_KERNEL(masked_gemm_scratch)(float64, steps, &bytes);
  bytes = (bytes + 63) / 64 * 64;
  const at::Tensor scratch = empty({parts * bytes}, at::kByte);
  char* memory = static_cast<char*>(scratch.mutable_data_ptr());
  // Item i is tile i % tiles of panel i / tiles; part q begins where q / parts of the work is done.
  const auto first_item = [&](int64_t q) {
    if (q == parts) return panels * tiles;
    const int64_t done = total / parts * q;
    const int64_t panel = std::upper_bound(ends.begin(), ends.end(), done) - ends.begin();
    if (panel == panels) return panels * tiles;
    const int64_t before = panel == 0 ? 0 : ends[panel - 1];
    return panel * tiles + (done - before) * tiles / (ends[panel] - before);
  };
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q) {
      const int64_t last = first_item(q + 1);
      for (int64_t item = first_item(q); item < last;) {
        const int64_t panel = item / tiles, stop = std::min(last, (panel + 1) * tiles);
        kernel(MaskedGemmPart{bounds[panel], bounds[panel + 1], item - panel * tiles, stop - panel * tiles},
               memory + q * bytes);
        item = stop;
      }
    }
  };
  parallel(parts > 1, parts, run);
}

}  // namespace

at::Tensor fused_forward(const HostMask& mask, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const int64_t batch = x.size(0), in_features = mask.plan().in_features, out_features = mask.plan().out_features;
  const void* b = bias.defined() ? bias.const_data_ptr() : nullptr;
  at::Tensor y = empty({batch, out_features}, x.scalar_type());
  if (batch <= stream_batch) {
    MaskedRows arguments = stream_arguments(mask, storage_type(weight.scalar_type()), batch);
    arguments.input = x.const_data_ptr();
    arguments.weight = weight.const_data_ptr();
    arguments.bias = b;
    arguments.output = y.mutable_data_ptr();
    stream(mask, arguments, false, AR_FAST_CPU_KERNEL(masked_forward_rows));
    return y;
  }
  const at::Tensor tiles = make_tiles(sort_features(x, mask.columns()), true);
  MaskedGemm arguments{storage_type(weight.scalar_type()), mask.plan(), nullptr, batch, tiles.const_data_ptr(),
                       weight.const_data_ptr(), b, y.mutable_data_ptr(), nullptr};
  const std::vector<int64_t> bounds = make_panels(mask, out_features, tiles.size(0));
  run_panels(
      bounds, tiles.size(0), in_features, x.scalar_type() == at::kDouble, batch,
      [&](int64_t p) { return (mask.nested() ? mask.extent(bounds[p + 1] - 1) : in_features) + 8; },
      [&](const MaskedGemmPart& part, void* scratch) {
        MaskedGemm own = arguments;
        own.scratch = scratch;
        AR_FAST_CPU_KERNEL(masked_gemm_y)(own, part);
      });
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
    stream(mask, arguments, true, AR_FAST_CPU_KERNEL(masked_grad_input_columns));
    return dx;
  }
  const at::Tensor tiles = make_tiles(sort_features(dy, mask.rows()), true);
  const std::vector<int32_t> starts = mask.nested() ? mask.starts() : std::vector<int32_t>();
  MaskedGemm arguments{storage_type(weight.scalar_type()), mask.plan(), starts.data(), batch, tiles.const_data_ptr(),
                       weight.const_data_ptr(), nullptr, dx.mutable_data_ptr(), nullptr};
  const std::vector<int64_t> bounds = make_panels(mask, in_features, tiles.size(0));
  run_panels(
      bounds, tiles.size(0), out_features, dy.scalar_type() == at::kDouble, batch,
      [&](int64_t p) { return out_features - (mask.nested() ? starts[bounds[p]] : 0) + 8; },
      [&](const MaskedGemmPart& part, void* scratch) {
        MaskedGemm own = arguments;
        own.scratch = scratch;
        AR_FAST_CPU_KERNEL(masked_gemm_dx)(own, part);
      });
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
    stream(mask, arguments, false, AR_FAST_CPU_KERNEL(masked_grad_weight_rows));
    return dw;
  }
  const at::Tensor tiles = make_tiles(sort_features(x, mask.columns()), false);
  const at::Tensor units = sort_features(dy, mask.rows()).t().contiguous();
  const ScalarType compute = storage_type(x.scalar_type());
  const bool in_place = type == compute && mask.sorted();
  MaskedGemm arguments{compute, plan, nullptr, batch, tiles.const_data_ptr(), units.const_data_ptr(), nullptr,
                       nullptr, nullptr};
  const std::vector<int64_t> bounds = make_panels(mask, out_features, 1);
  const int64_t row_bytes = in_features * static_cast<int64_t>(x.element_size());
  run_panels(
      // A thread's panel of dW lies in the packed part of its scratch until it is written in the op's order.
      bounds, 1, in_features, x.scalar_type() == at::kDouble, batch,
      [&](int64_t p) { return (mask.nested() ? mask.extent(bounds[p + 1] - 1) : in_features) + 8; },
      [&](const MaskedGemmPart& part, void* scratch) {
        MaskedGemm own = arguments;
        own.scratch = scratch;
        const int64_t begin = part.unit_begin, end = part.unit_end;
        if (in_place) {
          AR_FAST_CPU_KERNEL(masked_gemm_dw)
          (own, begin, end, static_cast<char*>(dw.mutable_data_ptr()) + begin * row_bytes, in_features);
          AR_FAST_CPU_KERNEL(masked_clear)(type, plan, begin, end, dw.mutable_data_ptr());
          return;
        }
        int64_t bytes = 0;
        AR_FAST_CPU_KERNEL(masked_gemm_scratch)(x.scalar_type() == at::kDouble, 0, &bytes);
        char* rows = static_cast<char*>(scratch) + bytes;
        AR_FAST_CPU_KERNEL(masked_gemm_dw)(own, begin, end, rows, in_features);
        AR_FAST_CPU_KERNEL(masked_unpack)
        (type, plan, mask.rank(), rows, {begin, end, 0, in_features}, dw.mutable_data_ptr());
      });
  return dw;
}

}  // namespace ar_fast
