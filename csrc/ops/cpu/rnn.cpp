// rnn_sample on the CPU: one team of torch's threads for all positions.
#include "../rnn.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>

#include "../../kernels/cpu/rnn_cpu.h"
#include "../explain.h"
#include "isa.h"
#include "values.h"

namespace ar_fast {
namespace {

// Threads share the units of a layer and wait for each other after it. This helps if a share takes a microsecond or so.
int64_t team_parts(const RnnSample& sample) {
#if defined(_OPENMP)
  if (at::in_parallel_region()) return 1;
  constexpr int64_t multiply_adds_worth_a_thread = 16 * 1024;
  const int64_t of_layer = sample.draws.batch * sample.gates() * sample.hidden * sample.hidden;
  return std::clamp<int64_t>(of_layer / multiply_adds_worth_a_thread, 1, at::get_num_threads());
#else
  return 1;
#endif
}

RnnSampleResult rnn_sample_cpu(const RnnSampleArguments& a) {
  const RnnTensors t = prepare_rnn_sample(a);
  TORCH_CHECK(a.algorithm == "auto", rnn_name, ": algorithm must be auto on the CPU, got '", a.algorithm, "'");
  const RnnSample& sample = t.sample;
  check_order_values(rnn_name, sample.draws);
  if (sample.draws.batch > 0 && a.stop > a.start) {
    RnnLayout layout{};
    AR_FAST_CPU_KERNEL(rnn_layout)(sample, &layout);
    const int64_t parts = team_parts(sample);
    explain(rnn_name, " on the CPU: ", isa_name(), ", ", sample.draws.batch, " rows together, the units of ",
            sample.layers, " layers of H = ", sample.hidden, " split ", parts, " ways, positions ", a.start, " to ",
            a.stop);
    const auto bytes = at::TensorOptions(at::kByte);
    const at::Tensor shared = at::empty({layout.shared_bytes}, bytes);
    const at::Tensor own = at::empty({parts, layout.own_bytes}, bytes);
    const auto kernel = AR_FAST_CPU_KERNEL(rnn_sample);
    char* const own_memory = static_cast<char*>(own.mutable_data_ptr());
    void* const shared_memory = shared.mutable_data_ptr();
    if (parts == 1) {
      kernel(sample, RnnTeam{1, 0, nullptr}, shared_memory, own_memory);
    } else {
#if defined(_OPENMP)
#pragma omp parallel num_threads(static_cast<int>(parts))
      {
        const RnnTeam team{omp_get_num_threads(), omp_get_thread_num(), [] {
#pragma omp barrier
                           }};
        kernel(sample, team, shared_memory, own_memory + team.part * layout.own_bytes);
      }
#endif
    }
  }
  return t.result();
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<rnn_sample_cpu>(m); }

}  // namespace ar_fast
