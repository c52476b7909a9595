// rnn_sample on the CPU: one team of torch's threads for all positions.
#include "../rnn.h"

#include "../../kernels/cpu/rnn_cpu.h"
#include "../explain.h"
#include "isa.h"
#include "team.h"
#include "values.h"

namespace ar_fast {
namespace {

RnnSampleResult rnn_sample_cpu(const RnnSampleArguments& a) {
  const RnnTensors t = prepare_rnn_sample(a);
  TORCH_CHECK(a.algorithm == "auto", rnn_name, ": algorithm must be auto on the CPU, got '", a.algorithm, "'");
  const RnnSample& sample = t.sample;
  check_order_values(rnn_name, sample.draws);
  if (sample.draws.batch > 0 && a.stop > a.start) {
    TeamLayout layout{};
    AR_FAST_CPU_KERNEL(rnn_layout)(sample, &layout);
    // Threads share the units of a layer.
    const int64_t parts = team_parts(sample.draws.batch * sample.gates() * sample.hidden * sample.hidden);
    explain(rnn_name, " on the CPU: ", isa_name(), ", ", sample.draws.batch, " rows together, the units of ",
            sample.layers, " layers of H = ", sample.hidden, " split ", parts, " ways, positions ", a.start, " to ",
            a.stop);
    const auto kernel = AR_FAST_CPU_KERNEL(rnn_sample);
    run_team(parts, layout,
             [&](const Team& team, void* shared, void* own) { kernel(sample, team, shared, own); });
  }
  return t.result();
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<rnn_sample_cpu>(m); }

}  // namespace ar_fast
