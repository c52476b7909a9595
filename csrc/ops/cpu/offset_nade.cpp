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

std::tuple<at::Tensor, at::Tensor, at::Tensor> offset_nade_sample_cpu(const OffsetNadeSampleArguments& a) {
  const OffsetNadeTensors t = prepare_offset_nade_sample(a);
  const OffsetNadeSample& sample = t.sample;
  check_order_values(offset_nade_name, sample.draws);
  if (sample.draws.batch > 0 && a.stop > a.start) {
    int64_t scratch_bytes = 0;
    AR_FAST_CPU_KERNEL(offset_nade_layout)(sample, &scratch_bytes);
    explain(offset_nade_name, " on the CPU: ", isa_name(), ", ", sample.draws.batch, " rows one by one on ",
            at::get_num_threads(),
            " threads, positions ", a.start, " to ", a.stop, ", ", sample.taps(), " taps of ", sample.channels,
            " channels, H = ", sample.hidden);
    const auto kernel = AR_FAST_CPU_KERNEL(offset_nade_sample);
    at::parallel_for(0, sample.draws.batch, 1, [&](int64_t begin, int64_t end) {
      // torch aligns its allocations to a cache line.
      const at::Tensor scratch = at::empty({scratch_bytes}, at::TensorOptions(at::kByte));
      kernel(sample, begin, end, scratch.mutable_data_ptr());
    });
  }
  return t.result();
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<offset_nade_sample_cpu>(m); }

}  // namespace ar_fast
