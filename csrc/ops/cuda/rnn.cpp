// rnn_sample on CUDA: launches on the current stream. Nothing here synchronises, so the values of order, given and last
// are not checked.
#include "../rnn.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string>

#include "../../kernels/cuda/rnn_cuda.h"
#include "../explain.h"
#include "stream.h"

namespace ar_fast {
namespace {

RnnTeams teams_of(std::string_view algorithm) {
  return algorithm == "block" ? RnnTeams::one_block : algorithm == "grid" ? RnnTeams::grid : RnnTeams::automatic;
}

RnnSampleResult rnn_sample_cuda_op(const RnnSampleArguments& a) {
  const c10::DeviceGuard guard(a.state.device());
  RnnTensors t = prepare_rnn_sample(a);
  const RnnSample& sample = t.sample;
  const int64_t count = a.stop - a.start;
  if (sample.draws.batch == 0 || count == 0) return t.result();
  constexpr int64_t limit = int64_t{1} << 28;
  TORCH_CHECK(sample.draws.batch < limit && sample.hidden < limit && sample.parameters < limit, rnn_name,
              ": the CUDA kernel takes fewer than 2^28 rows, hidden units and parameters, got ", sample.draws.batch,
              ", ", sample.hidden, " and ", sample.parameters);
  RnnCut cut{};
  check_launch(rnn_name, rnn_cuda_cut(sample, teams_of(a.algorithm), cut));
  constexpr int64_t most = int64_t{1} << 30;
  TORCH_CHECK(count < most / sample.layers / std::max(cut.unit_blocks, cut.draw_blocks), rnn_name,
              ": the CUDA kernel takes fewer positions per call, got ", count, " with ", sample.layers, " layers");
  if (!cut.weights_on_chip) {
    TORCH_WARN_ONCE(rnn_name, ": the weights of ", sample.layers, " layers of H = ", sample.hidden,
                    " do not fit into the shared memory of this GPU; they are read from its L2 cache at every step");
  }
  const std::string obstacle = cut.obstacle == nullptr ? "" : cut.obstacle;
  explain(rnn_name, " on CUDA: ", cut.teams, cut.draw_blocks > 0 ? " cooperative grid of " : " blocks of ",
          cut.unit_blocks, " x ", cut.units, " units and ", cut.draw_blocks, " blocks that draw",
          cut.matrix ? ", matrix instructions" : "", obstacle.empty() ? "" : ", no matrix instructions because of ",
          obstacle, ", weights in ",
          cut.matrix ? "registers" : cut.weights_on_chip ? "shared memory" : "global memory", ", ",
          sample.draws.batch, " rows, positions ", a.start, " to ", a.stop);
  const auto options = t.state.options();
  const at::Tensor states = at::zeros({2, sample.layers, sample.draws.batch, cut.padded}, options);
  states[0].slice(2, 0, sample.hidden).copy_(t.state);
  const at::Tensor parameters = cut.parameters_on_chip
                                    ? at::Tensor()
                                    : at::empty({sample.draws.batch, sample.parameters}, options);
  const at::Tensor arrived = at::zeros({cut.teams}, options.dtype(at::kInt));
  const at::Tensor published = cut.draw_blocks > 0 ? at::zeros({sample.draws.batch}, options.dtype(at::kLong))
                                                   : at::Tensor();
  const at::Tensor words = cut.matrix ? at::zeros({sample.draws.batch, 2, cut.padded}, options.dtype(at::kLong))
                                      : at::Tensor();
  const RnnScratch scratch{states.mutable_data_ptr(), parameters.defined() ? parameters.mutable_data_ptr() : nullptr,
                           arrived.mutable_data_ptr<int>(),
                           published.defined() ? static_cast<uint64_t*>(published.mutable_data_ptr()) : nullptr,
                           words.defined() ? static_cast<uint64_t*>(words.mutable_data_ptr()) : nullptr};
  check_launch(rnn_name, rnn_sample_cuda(sample, cut, scratch, current_stream(a.state)));
  t.state = states[count % 2].slice(2, 0, sample.hidden).contiguous();
  return t.result();
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) { implement<rnn_sample_cuda_op>(m); }

}  // namespace ar_fast
