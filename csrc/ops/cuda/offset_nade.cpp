// offset_nade_sample on CUDA: launches on the current stream. Nothing here synchronises, so the values of order and
// given are not looked at.
#include "../offset_nade.h"

#include <ATen/ops/empty.h>

#include "../../kernels/cuda/offset_nade_cuda.h"
#include "../explain.h"
#include "../library.h"
#include "stream.h"

namespace ar_fast {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> offset_nade_sample_cuda_op(
    const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& in_bias, const at::Tensor& out_weight,
    const at::Tensor& out_bias, const OptionalTensor& order, const OptionalTensor& given, const OptionalTensor& known,
    at::IntArrayRef grid, at::IntArrayRef window, bool shared_output, std::string activation, std::string head,
    int64_t levels, int64_t seed, int64_t first_index, int64_t start, int64_t stop, double temperature,
    std::string algorithm) {
  const char* op = "offset_nade_sample";
  check_algorithm(op, algorithm, {"auto", "pixels"});
  const c10::DeviceGuard guard(state.device());
  const OffsetNadeTensors t =
      prepare_offset_nade_sample(state, in_weight, in_bias, out_weight, out_bias, order, given, known, grid, window,
                                 shared_output, activation, head, levels, seed, first_index, start, stop, temperature);
  const OffsetNadeSample& sample = t.sample;
  constexpr int64_t limit = int64_t{1} << 30;
  TORCH_CHECK(sample.batch < limit && sample.hidden < limit && sample.parameters < limit && sample.channels < limit, op,
              ": the CUDA kernel takes fewer than 2^30 rows, hidden units, parameters and channels, got ", sample.batch,
              ", ", sample.hidden, ", ", sample.parameters, " and ", sample.channels);
  if (sample.batch > 0 && stop > start) {
    const OffsetNadeCut cut = offset_nade_cuda_cut(sample);
    explain(op, " on CUDA: a block per sample, ", cut.segments, " threads per hidden unit, units in ",
            cut.shared_bytes > 0 ? "shared memory" : "global memory", ", ", sample.batch, " rows, positions ", start,
            " to ", stop);
    const at::Tensor scratch = at::empty({cut.scratch_bytes}, state.options().dtype(at::kByte));
    check_launch(op, offset_nade_sample_cuda(sample, scratch.mutable_data_ptr(), current_stream(state)));
  }
  return t.result();
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) { m.impl("offset_nade_sample", offset_nade_sample_cuda_op); }

}  // namespace ar_fast
