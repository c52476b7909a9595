// How the CPU implementations split rows: into slices on torch's threads, where each thread has its own scratch.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

namespace ar_fast {

// The most rows of one call of a kernel: their states stay in the cache.
constexpr int64_t rows_per_task = 64;

// Calls body(begin, end, scratch) over [0, count) in slices of at most `slice`, one scratch per thread.
template <typename Body>
void in_slices(int64_t count, int64_t slice, int64_t scratch_bytes, const Body& body) {
  const int64_t slices = (count + slice - 1) / slice;
  at::parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
    // Aligned to a cache line, as the kernels expect for their arrays.
    auto scratch = at::empty({scratch_bytes + 64}, at::kByte);
    char* base = static_cast<char*>(scratch.mutable_data_ptr());
    base += (64 - reinterpret_cast<uintptr_t>(base) % 64) % 64;
    for (int64_t s = begin; s < end; ++s) body(s * slice, std::min(count, (s + 1) * slice), base);
  });
}

inline int64_t rows_per_slice(int64_t batch) {
  const int64_t threads = std::max<int64_t>(1, at::get_num_threads());
  return std::max<int64_t>(1, std::min(rows_per_task, (batch + threads - 1) / threads));
}

}  // namespace ar_fast
