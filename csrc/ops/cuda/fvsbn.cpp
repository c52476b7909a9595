// fvsbn_sample on CUDA: launches on the current stream. Nothing here synchronises, so the values of order, offsets and
// categories are not checked.
#include "../fvsbn.h"

#include "../../kernels/cuda/fvsbn_cuda.h"
#include "../explain.h"
#include "stream.h"

namespace ar_fast {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> fvsbn_sample_cuda_op(const FvsbnSampleArguments& a) {
  const char* op = fvsbn_name;
  const c10::DeviceGuard guard(a.weight.device());
  const auto t = prepare_fvsbn_sample(a);
  constexpr int64_t limit = int64_t{1} << 30;
  TORCH_CHECK(t.sample.draws.batch < limit && a.variables < limit, op,
              ": the CUDA kernel takes fewer than 2^30 rows and variables, got ", t.sample.draws.batch, " and ",
              a.variables);
  if (t.sample.draws.batch > 0 && a.stop > a.start) {
    explain(op, " on CUDA: a block per sample, values pushed, parameters in ",
            fvsbn_sample_in_shared_memory(t.sample) ? "shared" : "global", " memory, ", t.sample.draws.batch,
            " rows, positions ", a.start, " to ", a.stop);
    check_launch(op, fvsbn_sample_cuda(t.sample, current_stream(a.weight)));
  }
  return {t.drawn.values, t.drawn.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) { implement<fvsbn_sample_cuda_op>(m); }

}  // namespace ar_fast
