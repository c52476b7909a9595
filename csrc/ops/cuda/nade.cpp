// NADE on CUDA: allocates outputs and scratch, and launches on the current stream. Nothing here synchronises, so the
// values of order, offsets and categories are not checked.
#include "../nade.h"

#include <ATen/ops/empty.h>

#include "../../kernels/cuda/nade_cuda.h"
#include "../explain.h"
#include "stream.h"

namespace ar_fast {
namespace {

void check_limits(const char* op, const NadeModel& model, int64_t batch) {
  constexpr int64_t limit = int64_t{1} << 30;
  TORCH_CHECK(model.variables < limit && model.hidden < limit && batch < limit, op,
              ": the CUDA kernels take fewer than 2^30 rows, variables and hidden units, got ", batch, ", ",
              model.variables, " and ", model.hidden);
}

// A drawn category selects its row of in_weight, so each must have a row: checked if the counts of rows are known here.
void check_gathered_rows(const char* op, const NadeModel& model, const NadeSample& sample) {
  if (!sample.gathers || sample.draws.head.kind != HeadKind::categorical) return;
  if (model.in_offsets || model.out_offsets) return;
  TORCH_CHECK(model.in_rows == model.out_rows, op,
              ": in_weight and out_weight must have as many rows for a categorical variable, got ", model.in_rows,
              " and ", model.out_rows, " for ", model.variables, " variables");
}

at::Tensor empty_scratch(int64_t bytes, const at::Tensor& weight) {
  return at::empty({bytes}, weight.options().dtype(at::kByte));
}

void run_forward(const char* op, const NadeTensors& t, const NadeForward& output) {
  if (t.input.batch == 0) return;
  check_limits(op, t.model, t.input.batch);
  const NadeForwardCut cut = nade_forward_cuda_cut(t.model, t.input);
  explain(op, " on CUDA: kernels nade_sums, nade_running_sums, nade_scan",
          cut.tiles ? " (tiles of both weights in shared memory)" : " (weight rows from L2)", ", nade_head; ",
          cut.chunks, " chunks of ", cut.chunk, " positions, ", cut.strips, " strips of ", cut.strip,
          " hidden units (H = ", t.model.hidden, "), ", t.input.batch, " rows, ", cut.rows, " at a time");
  const c10::DeviceGuard guard(t.in_weight.device());
  const at::Tensor scratch = empty_scratch(cut.scratch_bytes, t.in_weight);
  check_launch(op,
               nade_forward_cuda(t.model, t.input, output, scratch.mutable_data_ptr(), current_stream(t.in_weight)));
}

at::Tensor nade_cuda(const NadeArguments& a) {
  const auto t = prepare_nade_forward(a);
  run_forward("nade", t, t.output);
  return t.parameters;
}

std::tuple<at::Tensor, at::Tensor> nade_log_prob_forward_cuda(const NadeLogProbForwardArguments& a) {
  const auto t = prepare_nade_log_prob(a);
  run_forward("nade_log_prob", t, t.output);
  return {t.log_prob, t.parameters};
}

NadeBackwardArguments::Result nade_backward_cuda_op(const NadeBackwardArguments& a) {
  const char* op = NadeBackwardArguments::op;
  const auto t = prepare_nade_backward(a);
  check_limits(op, t.model, t.input.batch);
  const NadeBackwardCut cut = nade_backward_cuda_cut(t.model, t.input);
  explain(op, " on CUDA: kernels nade_sums, nade_running_sums, ",
          cut.tile > 1 ? "nade_local, nade_far" : "nade_out_rows, nade_in_rows, nade_bias",
          a.needs_x || a.needs_activation_scale ? ", nade_inputs; " : "; ", cut.tiles, " tiles of ",
          cut.tile, " positions in ", cut.segments, " segments, ", t.input.batch, " rows");
  const c10::DeviceGuard guard(a.in_weight.device());
  const at::Tensor scratch = empty_scratch(cut.scratch_bytes, a.in_weight);
  check_launch(op,
               nade_backward_cuda(t.model, t.input, t.output, scratch.mutable_data_ptr(), current_stream(a.in_weight)));
  return t.result();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> nade_sample_cuda_op(const NadeSampleArguments& a) {
  const char* op = NadeSampleArguments::op;
  const auto t = prepare_nade_sample(a);
  check_limits(op, t.model, t.sample.draws.batch);
  check_gathered_rows(op, t.model, t.sample);
  if (t.sample.draws.batch > 0 && a.stop > a.start) {
    const NadeSampleCut cut = nade_sample_cuda_cut(t.model, t.sample);
    explain(op, " on CUDA: kernel ", cut.registers ? "nade_sample" : "nade_sample_general", ", a block of ", cut.warps,
            " warps per sample, state in ",
            cut.registers ? "registers" : cut.units_shared ? "shared memory" : "global memory", ", parameters in ",
            cut.registers ? "registers" : cut.parameters_shared ? "shared memory" : "global memory", ", ",
            t.sample.draws.batch, " rows, ", cut.rows, " at a time, positions ", a.start, " to ", a.stop);
    const c10::DeviceGuard guard(a.in_weight.device());
    const at::Tensor scratch = empty_scratch(cut.scratch_bytes, a.in_weight);
    check_launch(op, nade_sample_cuda(t.model, t.sample, scratch.mutable_data_ptr(), current_stream(a.in_weight)));
  }
  return {t.drawn.values, t.drawn.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) {
  implement<nade_cuda>(m);
  implement<nade_log_prob_forward_cuda>(m);
  implement<nade_backward_cuda_op>(m);
  implement<nade_sample_cuda_op>(m);
}

}  // namespace ar_fast
