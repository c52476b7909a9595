// offset_nade_sample on CUDA: launches on the current stream. Nothing here synchronises, so the values of order and
// given are not checked.
#include "../offset_nade.h"

#include <ATen/ops/empty.h>

#include "../../kernels/cuda/offset_nade_cuda.h"
#include "../explain.h"
#include "stream.h"

namespace ar_fast {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> offset_nade_sample_cuda_op(const OffsetNadeSampleArguments& a) {
  const char* op = offset_nade_name;
  TORCH_CHECK(a.algorithm != "wavefront", op, ": algorithm must be auto or pixels on CUDA, got '", a.algorithm, "'");
  const c10::DeviceGuard guard(a.state.device());
  const OffsetNadeTensors t = prepare_offset_nade_sample(a);
  const OffsetNadeSample& sample = t.sample;
  constexpr int64_t limit = int64_t{1} << 30;
  TORCH_CHECK(sample.draws.batch < limit && sample.most_units() < limit && sample.parameters < limit &&
                  sample.channels < limit,
              op, ": the CUDA kernel takes fewer than 2^30 rows, hidden units, parameters and channels, got ",
              sample.draws.batch, ", ", sample.most_units(), ", ", sample.parameters, " and ", sample.channels);
  if (sample.draws.batch > 0 && a.stop > a.start) {
    const OffsetNadeCut cut = offset_nade_cuda_cut(sample);
    explain(op, " on CUDA: a block per sample, ", cut.segments, " threads per hidden unit, units in ",
            cut.shared_bytes > 0 ? "shared memory" : "global memory", ", ", sample.draws.batch, " rows, positions ",
            a.start, " to ", a.stop);
    const at::Tensor scratch = at::empty({cut.scratch_bytes}, a.state.options().dtype(at::kByte));
    check_launch(op, offset_nade_sample_cuda(sample, scratch.mutable_data_ptr(), current_stream(a.state)));
  }
  return t.result();
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) { implement<offset_nade_sample_cuda_op>(m); }

}  // namespace ar_fast
