// masked_mlp_sample on CUDA: launches on the current stream. Nothing here synchronises, so the values of extents,
// unit_ends and order are not looked at.
#include "../masked_mlp.h"

#include <ATen/ops/empty.h>

#include "../../kernels/cuda/masked_mlp_cuda.h"
#include "../activation.h"
#include "../explain.h"
#include "../library.h"
#include "stream.h"

namespace ar_fast {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_mlp_sample_cuda_op(
    const at::Tensor& state, at::TensorList weights, at::TensorList biases, at::TensorList extents,
    at::TensorList unit_ends, at::IntArrayRef program, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
    std::string activation, std::string head, int64_t levels, const OptionalTensor& head_kinds, int64_t seed,
    int64_t first_index, int64_t start, int64_t stop, double temperature, std::string algorithm) {
  const char* op = "masked_mlp_sample";
  check_algorithm(op, algorithm, {"auto", "lanes"});
  const Head parsed = parse_head(op, head, levels, head_kinds);
  check_masked_mlp_sample(state, weights, biases, extents, unit_ends, program, order, in_offsets, out_offsets, given,
                          known, variables, parsed, head_kinds, start, stop, temperature);
  constexpr int64_t limit = int64_t{1} << 30;
  TORCH_CHECK(state.size(0) < limit && state.size(1) < limit, op,
              ": the CUDA kernel takes fewer than 2^30 rows and units, got state of shape ", state.sizes());
  const c10::DeviceGuard guard(state.device());
  const MaskedMlpTensors t =
      prepare_masked_mlp(state, weights, biases, extents, unit_ends, program, order, in_offsets, out_offsets, given,
                         known, variables, parse_mlp_activation(op, activation), parsed, head_kinds, seed, first_index,
                         start, stop, temperature);
  if (t.sample.batch > 0 && stop > start) {
    explain(op, " on CUDA: a warp per sample, ", t.sample.batch, " rows, positions ", start, " to ", stop);
    const at::Tensor scratch =
        at::empty({masked_mlp_sample_cuda_scratch(t.sample)}, state.options().dtype(at::kByte));
    check_launch(op, masked_mlp_sample_cuda(t.sample, scratch.mutable_data_ptr(), current_stream(state)));
  }
  return {t.values, t.log_prob, t.state};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) { m.impl("masked_mlp_sample", masked_mlp_sample_cuda_op); }

}  // namespace ar_fast
