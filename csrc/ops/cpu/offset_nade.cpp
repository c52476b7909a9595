// offset_nade_sample on the CPU: on torch's threads, the rows of the batch in raster order, or bands of rows of the
// image along wavefronts.
#include "../offset_nade.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <thread>

#include "../../kernels/cpu/offset_nade_cpu.h"
#include "../explain.h"
#include "isa.h"
#include "values.h"

namespace ar_fast {
namespace {

// The rows of the image that a call draws.
int64_t image_rows(const OffsetNadeSample& sample) {
  const int64_t per_row = sample.columns * sample.channels;
  return (sample.draws.stop - 1) / per_row - sample.draws.start / per_row + 1;
}

// How many threads have enough to do, and not too much to wait for: a band is as far ahead of the next as a wavefront's
// pixels are apart, so only some of them are drawn at the same time.
int64_t worthwhile_threads(const OffsetNadeSample& sample, const OffsetNadeLayout& layout, int64_t bands) {
  const Draws& draws = sample.draws;
  constexpr int64_t worth_a_thread = 4 * 1024 * 1024, of_a_draw = 8 * 1024;   // multiply-adds
  int64_t each = of_a_draw + (sample.taps() + 1) * sample.hidden + sample.parameters * sample.units(sample.layers);
  for (int64_t l = 0; l < sample.layers; ++l) each += sample.units(l) * sample.units(l + 1);
  const int64_t worth = draws.batch * (draws.stop - draws.start) * each / worth_a_thread;
  const int64_t apart = sample.up > 0 ? layout.band_rows * (sample.side + 1) : 0;
  const int64_t at_once = apart > 0 ? std::min(bands, 1 + sample.columns / apart) : bands;
  return std::max<int64_t>(1, std::min<int64_t>({at::get_num_threads(), draws.batch * at_once, worth}));
}

at::Tensor scratch_of(const OffsetNadeLayout& layout) {
  // torch aligns its allocations to a cache line.
  return at::empty({layout.scratch_bytes}, at::TensorOptions(at::kByte));
}

void draw_raster(const OffsetNadeSample& sample, const OffsetNadeLayout& layout) {
  const auto kernel = AR_FAST_CPU_KERNEL(offset_nade_sample);
  at::parallel_for(0, sample.draws.batch, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor scratch = scratch_of(layout);
    kernel(sample, begin, end, scratch.mutable_data_ptr());
  });
}

void wait_for_another(int64_t turn) {
  constexpr int64_t turns_awake = 1000;
  if (turn > turns_awake) {
    std::this_thread::yield();
  } else {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

// In the order of positions, as in raster order.
template <typename T>
void add_terms(const OffsetNadeSample& sample, const T* terms) {
  const int64_t count = sample.draws.stop - sample.draws.start;
  for (int64_t row = 0; row < sample.draws.batch; ++row, terms += count) {
    double sum = 0;
    for (int64_t p = 0; p < count; ++p) sum += static_cast<double>(terms[p]);
    sample.draws.log_prob[row] = sum;
  }
}

void draw_wavefront(const OffsetNadeSample& sample, const OffsetNadeLayout& layout, int64_t bands, int64_t threads,
                    const at::TensorOptions& compute) {
  const Draws& draws = sample.draws;
  const at::Tensor counts =
      at::zeros({(1 + draws.batch * bands) * offset_nade_drawn_stride}, at::TensorOptions(at::kLong));
  const at::Tensor terms = at::empty({draws.batch, draws.stop - draws.start}, compute);
  int64_t* const next = counts.mutable_data_ptr<int64_t>();
  const OffsetNadeFront front{bands, next, next + offset_nade_drawn_stride, terms.mutable_data_ptr(),
                              &wait_for_another};
  const auto kernel = AR_FAST_CPU_KERNEL(offset_nade_wavefront);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const at::Tensor scratch = scratch_of(layout);
    kernel(sample, front, scratch.mutable_data_ptr());
  });
  if (sample.storage == ScalarType::float64) {
    add_terms(sample, terms.const_data_ptr<double>());
  } else {
    add_terms(sample, terms.const_data_ptr<float>());
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> offset_nade_sample_cpu(const OffsetNadeSampleArguments& a) {
  const OffsetNadeTensors t = prepare_offset_nade_sample(a);
  const OffsetNadeSample& sample = t.sample;
  check_order_values(offset_nade_name, sample.draws);
  if (sample.draws.batch > 0 && a.stop > a.start) {
    OffsetNadeLayout layout{};
    AR_FAST_CPU_KERNEL(offset_nade_layout)(sample, &layout);
    const int64_t rows = image_rows(sample), bands = (rows + layout.band_rows - 1) / layout.band_rows;
    // Streams are read in the order of positions.
    const bool in_order = sample.draws.coding.decoders != nullptr;
    const bool wavefront =
        !in_order && (a.algorithm == "wavefront" || (a.algorithm == "auto" && rows >= layout.band_rows));
    const int64_t threads = wavefront ? worthwhile_threads(sample, layout, bands)
                                      : std::min<int64_t>(at::get_num_threads(), sample.draws.batch);
    explain(offset_nade_name, " on the CPU: ", isa_name(), ", ", sample.draws.batch, " rows ",
            wavefront ? "along wavefronts" : "one by one", " on ", threads, " threads, positions ",
            a.start, " to ", a.stop, ", ", sample.taps(), " taps of ", sample.channels, " channels, ",
            sample.layers + 1, " hidden layers of at most ", sample.most_units());
    if (wavefront) {
      draw_wavefront(sample, layout, bands, threads, compute_options(a.in_weight));
    } else {
      draw_raster(sample, layout);
    }
  }
  return t.result();
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<offset_nade_sample_cpu>(m); }

}  // namespace ar_fast
