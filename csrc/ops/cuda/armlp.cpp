// armlp_sample on CUDA: launches on the current stream. Nothing here synchronises, so the values of order, offsets,
// block_starts and categories are not checked.
#include "../armlp.h"

#include <ATen/ops/empty.h>

#include "../../kernels/cuda/armlp_cuda.h"
#include "../explain.h"
#include "stream.h"

namespace ar_fast {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> armlp_sample_cuda_op(const ArmlpSampleArguments& a) {
  const char* op = armlp_name;
  const c10::DeviceGuard guard(a.in_weight.device());
  const auto t = prepare_armlp_sample(a);
  constexpr int64_t limit = int64_t{1} << 30;
  TORCH_CHECK(t.sample.draws.batch < limit && t.sample.draws.variables < limit && t.sample.hidden < limit, op,
              ": the CUDA kernel takes fewer than 2^30 rows, variables and hidden units, got ", t.sample.draws.batch,
              ", ", t.sample.draws.variables, " and ", t.sample.hidden);
  if (t.sample.draws.batch > 0 && a.stop > a.start) {
    const ArmlpSampleCut cut = armlp_sample_cuda_cut(t.sample);
    explain(op, " on CUDA: a block per sample, non-zero inputs gathered, values in ",
            cut.in_shared ? "shared" : "global", " memory, ", t.sample.draws.batch, " rows, ", cut.rows,
            " at a time, positions ", a.start, " to ", a.stop);
    const at::Tensor scratch = at::empty({cut.scratch_bytes}, a.in_weight.options().dtype(at::kByte));
    check_launch(op, armlp_sample_cuda(t.sample, scratch.mutable_data_ptr(), current_stream(a.in_weight)));
  }
  return {t.drawn.values, t.drawn.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) { implement<armlp_sample_cuda_op>(m); }

}  // namespace ar_fast
