// masked_mlp_sample on CUDA: launches on the current stream. Nothing here synchronises, so the values of extents,
// unit_ends and order are not checked.
#include "../masked_mlp.h"

#include <ATen/ops/empty.h>

#include <string>

#include "../../kernels/cuda/masked_mlp_cuda.h"
#include "../explain.h"
#include "stream.h"

namespace ar_fast {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_mlp_sample_cuda_op(const MaskedMlpSampleArguments& a) {
  const char* op = masked_mlp_name;
  TORCH_CHECK(!a.by_input, op, ": by_input must be False on CUDA, where fvsbn_sample takes such a weight, got True");
  constexpr int64_t limit = int64_t{1} << 30;
  TORCH_CHECK(a.state.size(0) < limit && a.state.size(1) < limit, op,
              ": the CUDA kernel takes fewer than 2^30 rows and units, got state of shape ", a.state.sizes());
  const c10::DeviceGuard guard(a.state.device());
  const MaskedMlpTensors t = prepare_masked_mlp(a);
  if (t.sample.draws.batch > 0 && a.stop > a.start) {
    const MaskedMlpCut cut = masked_mlp_sample_cuda_cut(t.sample);
    const std::string blocks =
        cut.block < a.variables ? ", in blocks of " + std::to_string(cut.block) + " after a product each" : "";
    explain(op, " on CUDA: ", cut.warps, " warps per sample, ", t.sample.draws.batch, " rows, positions ", a.start,
            " to ", a.stop, blocks);
    const at::Tensor scratch = at::empty({cut.scratch_bytes}, a.state.options().dtype(at::kByte));
    check_launch(op, masked_mlp_sample_cuda(t.sample, scratch.mutable_data_ptr(), current_stream(a.state)));
  }
  return {t.drawn.values, t.drawn.log_prob, t.state};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) { implement<masked_mlp_sample_cuda_op>(m); }

}  // namespace ar_fast
