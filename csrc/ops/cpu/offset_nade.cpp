// offset_nade_sample on the CPU: rows of the batch on torch's threads.
#include "../offset_nade.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "../../kernels/cpu/offset_nade_cpu.h"
#include "../explain.h"
#include "isa.h"
#include "values.h"

namespace ar_fast {
namespace {

// On the CPU values can be looked at without a synchronisation, so a known category that has no row raises.
template <typename T>
void check_known_categories(const OffsetNadeSample& sample) {
  if (!sample.gathers || sample.known == nullptr) return;
  const T* given = static_cast<const T*>(sample.given);
  const int64_t variables = sample.rows * sample.columns * sample.channels;
  for (int64_t i = 0; i < sample.batch * variables; ++i) {
    TORCH_CHECK(!sample.known[i] || (given[i] >= T(0) && given[i] < static_cast<T>(sample.parameters)),
                offset_nade_name,
                ": given must lie in [0, ", sample.parameters, ") for variable ", i % variables, ", got ", given[i]);
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> offset_nade_sample_cpu(const OffsetNadeSampleArguments& a) {
  const OffsetNadeTensors t = prepare_offset_nade_sample(a);
  const OffsetNadeSample& sample = t.sample;
  check_order_values(offset_nade_name, sample.order, sample.rows * sample.columns * sample.channels);
  if (sample.storage == ScalarType::float64) {
    check_known_categories<double>(sample);
  } else {
    check_known_categories<float>(sample);
  }
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
