// deep_nade_sample on the CPU: one team of torch's threads for all positions.
#include "../deep_nade.h"

#include "../../kernels/cpu/deep_nade_cpu.h"
#include "../explain.h"
#include "isa.h"
#include "team.h"
#include "values.h"

namespace ar_fast {
namespace {

SampleResult deep_nade_sample_cpu(const DeepNadeSampleArguments& a) {
  DeepNadeTensors t = prepare_deep_nade_sample(a);
  DeepNadeSample& sample = t.sample;
  check_order_values(deep_nade_name, sample.draws);
  const Entries drawn{a.start, a.stop, sample.draws.order};
  check_offset_values(deep_nade_name, "out_offsets", sample.out_offsets, a.variables, sample.out_rows, drawn);
  check_head_values(deep_nade_name, sample.draws.head, a.variables, sample.out_rows, sample.out_offsets, drawn);
  check_input_rows(deep_nade_name, sample.draws.head, a.variables, sample.out_rows, sample.out_offsets,
                   sample.in_offsets, sample.in_rows, drawn);
  if (sample.draws.batch > 0 && a.stop > a.start) {
    int64_t most_parameters = 0, widest = sample.hidden, multiply_adds = 0;
    for (int64_t k = drawn.begin; k < drawn.end; ++k) {
      const int64_t count = sample.first_out_row(drawn[k] + 1) - sample.first_out_row(drawn[k]);
      most_parameters = std::max(most_parameters, count);
    }
    sample.most_parameters = most_parameters;
    for (int64_t l = 1; l <= sample.layers; ++l) {
      multiply_adds = std::max(multiply_adds, sample.draws.batch * sample.units(l) * sample.units(l - 1));
      widest = std::max(widest, sample.units(l));
    }
    TeamLayout layout{};
    AR_FAST_CPU_KERNEL(deep_nade_layout)(sample, &layout);
    // Threads share the units of a layer.
    const int64_t parts = team_parts(multiply_adds);
    explain(deep_nade_name, " on the CPU: ", isa_name(), ", ", sample.draws.batch, " rows together, the units of ",
            sample.layers + 1, " layers of at most ", widest, " split ", parts, " ways, positions ", a.start, " to ",
            a.stop);
    const auto kernel = AR_FAST_CPU_KERNEL(deep_nade_sample);
    run_team(parts, layout,
             [&](const Team& team, void* shared, void* own) { kernel(sample, team, shared, own); });
  }
  return {t.drawn.values, t.drawn.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<deep_nade_sample_cpu>(m); }

}  // namespace ar_fast
