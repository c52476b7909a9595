// offset_nade_sample on the CPU: rows of the batch on torch's threads.
#include "../offset_nade.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "../../kernels/cpu/offset_nade_cpu.h"
#include "../explain.h"
#include "isa.h"
#include "values.h"

namespace ar_fast {
namespace {

// On the CPU values can be looked at without a synchronisation, so a category that has no row raises: one that is known,
// or that the state holds.
template <typename T>
void check_categories(const OffsetNadeSample& sample) {
  if (!sample.gathers) return;
  const auto check = [&](const char* name, T value, int64_t variable) {
    TORCH_CHECK(value >= T(0) && value < static_cast<T>(sample.parameters), offset_nade_name, ": ", name,
                " must lie in [0, ", sample.parameters, ") for variable ", variable, ", got ", value);
  };
  const T *given = static_cast<const T*>(sample.given), *history = static_cast<const T*>(sample.history);
  const int64_t variables = sample.rows * sample.columns * sample.channels, reach = sample.reach();
  const auto variable_at = [&](int64_t p) { return sample.order ? sample.order[p] : p; };
  for (int64_t row = 0; row < sample.batch; ++row, history += reach + sample.stop - sample.start) {
    for (int64_t p = std::max<int64_t>(0, sample.start - reach); p < sample.start; ++p) {
      // The order has been checked at the positions of this call only.
      check("state", history[p - sample.start + reach], p);
    }
    for (int64_t p = sample.start; sample.known && p < sample.stop; ++p) {
      const int64_t variable = variable_at(p), at = row * variables + variable;
      if (sample.known[at]) check("given", given[at], variable);
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> offset_nade_sample_cpu(const OffsetNadeSampleArguments& a) {
  const OffsetNadeTensors t = prepare_offset_nade_sample(a);
  const OffsetNadeSample& sample = t.sample;
  check_order_values(offset_nade_name, sample.order, sample.rows * sample.columns * sample.channels, a.start, a.stop);
  sample.storage == ScalarType::float64 ? check_categories<double>(sample) : check_categories<float>(sample);
  if (sample.batch > 0 && a.stop > a.start) {
    int64_t scratch_bytes = 0;
    AR_FAST_CPU_KERNEL(offset_nade_layout)(sample, &scratch_bytes);
    explain(offset_nade_name, " on the CPU: ", isa_name(), ", ", sample.batch, " rows one by one on ",
            at::get_num_threads(),
            " threads, positions ", a.start, " to ", a.stop, ", ", sample.taps(), " taps of ", sample.channels,
            " channels, H = ", sample.hidden);
    const auto kernel = AR_FAST_CPU_KERNEL(offset_nade_sample);
    at::parallel_for(0, sample.batch, 1, [&](int64_t begin, int64_t end) {
      // torch aligns what it allocates to a cache line.
      const at::Tensor scratch = at::empty({scratch_bytes}, at::TensorOptions(at::kByte));
      kernel(sample, begin, end, scratch.mutable_data_ptr());
    });
  }
  return t.result();
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<offset_nade_sample_cpu>(m); }

}  // namespace ar_fast
