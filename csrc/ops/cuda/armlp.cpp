// armlp_sample on CUDA: launches on the current stream. Nothing here synchronises, so the values of order, offsets,
// block_starts and categories are not looked at.
#include "../armlp.h"

#include <ATen/ops/empty.h>

#include "../../kernels/cuda/armlp_cuda.h"
#include "../explain.h"
#include "../library.h"
#include "stream.h"

namespace ar_fast {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> armlp_sample_cuda_op(
    const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& block_starts, const at::Tensor& in_bias,
    const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
    const OptionalTensor& offsets, const OptionalTensor& in_offsets, const OptionalTensor& given,
    const OptionalTensor& known, std::string activation, std::string head, int64_t levels,
    const OptionalTensor& head_kinds, int64_t seed, int64_t first_index, int64_t start, int64_t stop,
    double temperature, std::string algorithm) {
  const char* op = "armlp_sample";
  const c10::DeviceGuard guard(in_weight.device());
  const auto t = prepare_armlp_sample(state, in_weight, block_starts, in_bias, out_weight, out_bias, order, offsets,
                                      in_offsets, given, known, activation, head, levels, head_kinds, seed, first_index,
                                      start, stop, temperature, algorithm);
  constexpr int64_t limit = int64_t{1} << 30;
  TORCH_CHECK(t.sample.batch < limit && t.sample.variables < limit && t.sample.hidden < limit, op,
              ": the CUDA kernel takes fewer than 2^30 rows, variables and hidden units, got ", t.sample.batch, ", ",
              t.sample.variables, " and ", t.sample.hidden);
  if (t.sample.batch > 0 && stop > start) {
    const ArmlpSampleCut cut = armlp_sample_cuda_cut(t.sample);
    explain(op, " on CUDA: a block per sample, non-zero inputs gathered, values in ",
            cut.in_shared ? "shared" : "global", " memory, ", t.sample.batch, " rows, ", cut.rows,
            " at a time, positions ", start, " to ", stop);
    const at::Tensor scratch = at::empty({cut.scratch_bytes}, in_weight.options().dtype(at::kByte));
    check_launch(op, armlp_sample_cuda(t.sample, scratch.mutable_data_ptr(), current_stream(in_weight)));
  }
  return {t.values, t.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) { m.impl("armlp_sample", armlp_sample_cuda_op); }

}  // namespace ar_fast
