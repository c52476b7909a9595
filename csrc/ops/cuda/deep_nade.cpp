// deep_nade_sample on CUDA: launches on the current stream. Nothing here synchronises, so the values of order and
// offsets are not looked at.
#include "../deep_nade.h"

#include <ATen/ops/empty.h>

#include "../../kernels/cuda/deep_nade_cuda.h"
#include "../explain.h"
#include "stream.h"

namespace ar_fast {
namespace {

SampleResult deep_nade_sample_cuda_op(const DeepNadeSampleArguments& a) {
  const char* op = deep_nade_name;
  const c10::DeviceGuard guard(a.in_weight.device());
  const DeepNadeTensors t = prepare_deep_nade_sample(a);
  if (t.sample.draws.batch > 0 && a.stop > a.start) {
    const DeepNadeCut cut = deep_nade_cuda_cut(t.sample);
    constexpr int64_t limit = int64_t{1} << 28;
    TORCH_CHECK(t.sample.draws.batch < limit && cut.padded < limit && t.sample.most_parameters < limit, op,
                ": the CUDA kernel takes fewer than 2^28 rows, hidden units and parameters, got ",
                t.sample.draws.batch, ", ", cut.padded, " and ", t.sample.most_parameters);
    explain(op, " on CUDA: ", cut.blocks, " blocks of ", cut.rows, " rows, ", t.sample.layers + 1,
            " layers, hidden units in ", cut.in_shared ? "shared" : "global", " memory, positions ", a.start, " to ",
            a.stop);
    const at::Tensor scratch = at::empty({cut.scratch_bytes}, a.in_weight.options().dtype(at::kByte));
    check_launch(op, deep_nade_sample_cuda(t.sample, cut, scratch.mutable_data_ptr(), current_stream(a.in_weight)));
  }
  return {t.drawn.values, t.drawn.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) { implement<deep_nade_sample_cuda_op>(m); }

}  // namespace ar_fast
