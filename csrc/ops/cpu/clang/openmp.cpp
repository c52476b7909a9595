// Clang compiles `#pragma omp` to calls of LLVM's OpenMP runtime. Where torch runs on gcc's runtime, these functions pass
// the calls on to it, so that a build by clang has torch's threads too, and no second runtime beside them. The functions
// are those that `#pragma omp parallel`, `num_threads` and `barrier` need; another pragma would fail to link.
// LLVM's side: openmp/runtime/src/kmp.h and kmp_csupport.cpp; gcc's side: libgomp/parallel.c and barrier.c.
#include <omp.h>

#include <array>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <utility>

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();

// The body of a parallel region: the global and the team's number of the thread, then a pointer to each captured variable.
using Region = void (*)(int32_t*, int32_t*, ...);

}  // extern "C"

namespace {

constexpr int most_captured = 16;
// Of the next parallel region of this thread; 0: as many as the runtime chooses.
thread_local unsigned threads_wanted = 0;

struct Call {
  Region region;
  std::array<void*, most_captured> captured;
};

template <std::size_t... I>
void run(const Call& call, std::index_sequence<I...>) {
  using Body = void (*)(int32_t*, int32_t*, decltype(I, static_cast<void*>(nullptr))...);
  int32_t thread = omp_get_thread_num();
  // A region that captures fewer variables does not look at the rest of the arguments, which the caller cleans up.
  reinterpret_cast<Body>(call.region)(&thread, &thread, call.captured[I]...);
}

}  // namespace

extern "C" {

[[gnu::visibility("hidden")]] void __kmpc_fork_call(void*, int32_t captured, Region region, ...) {
  Call call{region, {}};
  if (captured > most_captured) __builtin_trap();
  va_list rest;
  va_start(rest, region);
  for (int32_t i = 0; i < captured; ++i) call.captured[static_cast<std::size_t>(i)] = va_arg(rest, void*);
  va_end(rest);
  const unsigned threads = threads_wanted;
  threads_wanted = 0;
  GOMP_parallel([](void* data) { run(*static_cast<const Call*>(data), std::make_index_sequence<most_captured>()); },
                &call, threads, 0);
}

[[gnu::visibility("hidden")]] void __kmpc_push_num_threads(void*, int32_t, int32_t threads) {
  threads_wanted = static_cast<unsigned>(threads);
}

[[gnu::visibility("hidden")]] int32_t __kmpc_global_thread_num(void*) { return omp_get_thread_num(); }

[[gnu::visibility("hidden")]] void __kmpc_barrier(void*, int32_t) { GOMP_barrier(); }

}  // extern "C"
