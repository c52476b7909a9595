// A team of torch's threads for a kernel that waits for all of them again and again.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>

#include "../../kernels/cpu/team.h"

namespace ar_fast {

// How many threads share multiply-adds between two waits, where a wait takes a microsecond or so.
inline int64_t team_parts(int64_t multiply_adds) {
#if defined(_OPENMP)
  if (at::in_parallel_region()) return 1;
  constexpr int64_t worth_a_thread = 16 * 1024;
  return std::clamp<int64_t>(multiply_adds / worth_a_thread, 1, at::get_num_threads());
#else
  return 1;
#endif
}

// kernel(team, shared, own) by every part, with the scratch that the layout asks for.
template <typename Kernel>
void run_team(int64_t parts, const TeamLayout& layout, const Kernel& kernel) {
  const auto bytes = at::TensorOptions(at::kByte);
  const at::Tensor shared = at::empty({layout.shared_bytes}, bytes);
  const at::Tensor own = at::empty({parts, layout.own_bytes}, bytes);
  char* const own_memory = static_cast<char*>(own.mutable_data_ptr());
  void* const shared_memory = shared.mutable_data_ptr();
  if (parts == 1) {
    kernel(Team{1, 0, nullptr}, shared_memory, own_memory);
    return;
  }
#if defined(_OPENMP)
#pragma omp parallel num_threads(static_cast<int>(parts))
  {
    const Team team{omp_get_num_threads(), omp_get_thread_num(), [] {
#pragma omp barrier
                    }};
    kernel(team, shared_memory, own_memory + team.part * layout.own_bytes);
  }
#endif
}

}  // namespace ar_fast
