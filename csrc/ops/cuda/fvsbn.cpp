// fvsbn_sample on CUDA: launches on the current stream. Nothing here synchronises, so the values of order, offsets and
// categories are not looked at.
#include "../fvsbn.h"

#include "../../kernels/cuda/fvsbn_cuda.h"
#include "../explain.h"
#include "../library.h"
#include "stream.h"

namespace ar_fast {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> fvsbn_sample_cuda_op(
    const at::Tensor& state, const at::Tensor& weight, const OptionalTensor& order, const OptionalTensor& offsets,
    const OptionalTensor& in_offsets, const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
    std::string head, int64_t levels, const OptionalTensor& head_kinds, int64_t seed, int64_t first_index,
    int64_t start, int64_t stop, double temperature, std::string algorithm) {
  const char* op = "fvsbn_sample";
  const c10::DeviceGuard guard(weight.device());
  const auto t = prepare_fvsbn_sample(state, weight, order, offsets, in_offsets, given, known, variables, head, levels,
                                      head_kinds, seed, first_index, start, stop, temperature, algorithm);
  constexpr int64_t limit = int64_t{1} << 30;
  TORCH_CHECK(t.sample.batch < limit && variables < limit, op,
              ": the CUDA kernel takes fewer than 2^30 rows and variables, got ", t.sample.batch, " and ", variables);
  if (t.sample.batch > 0 && stop > start) {
    explain(op, " on CUDA: a block per sample, values pushed, parameters in ",
            fvsbn_sample_in_shared_memory(t.sample) ? "shared" : "global", " memory, ", t.sample.batch,
            " rows, positions ", start, " to ", stop);
    check_launch(op, fvsbn_sample_cuda(t.sample, current_stream(weight)));
  }
  return {t.values, t.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) { m.impl("fvsbn_sample", fvsbn_sample_cuda_op); }

}  // namespace ar_fast
