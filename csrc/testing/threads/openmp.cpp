// The OpenMP runtime of a build under ThreadSanitizer (AR_FAST_SANITIZER=thread), in the place of torch's, whose waits
// the sanitizer does not see: a thread for each part of a parallel region, started by the region and joined at its end.
// The functions are those that gcc's `#pragma omp parallel`, `num_threads` and `barrier` need; another pragma would
// fail to link.
//
// With AR_FAST_REGIONS it prints the place in the library of each region that several threads run. A test shows that
// races are found by making the threads race:
//   AR_FAST_OVERLAP=PLACE      each thread of that region takes the share of the first one
//   AR_FAST_BREAK=barriers     a barrier of a region lets every thread through
//   AR_FAST_BREAK=loads        atomic loads order nothing
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <pthread.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

namespace {

bool broken(const char* what) {
  static const char* const chosen = std::getenv("AR_FAST_BREAK");
  return chosen != nullptr && std::strcmp(chosen, what) == 0;
}

uintptr_t place_in_library(void (*body)(void*)) {
  const auto address = reinterpret_cast<uintptr_t>(body);
  Dl_info library{};
  dladdr(reinterpret_cast<const void*>(address), &library);
  return address - reinterpret_cast<uintptr_t>(library.dli_fbase);
}

// Whether the threads of a region take the same share.
bool overlaps(uintptr_t region) {
  static const char* const chosen = std::getenv("AR_FAST_OVERLAP");
  return chosen != nullptr && std::strtoull(chosen, nullptr, 16) == region;
}

// What a thread knows of the region that it runs.
struct Place {
  int threads = 1;
  int number = 0;
  pthread_barrier_t* barrier = nullptr;
};
thread_local Place place;

}  // namespace

#define AR_FAST_RUNTIME extern "C" [[gnu::visibility("hidden")]]

AR_FAST_RUNTIME int omp_get_num_threads() { return place.threads; }
AR_FAST_RUNTIME int omp_get_thread_num() { return place.number; }

AR_FAST_RUNTIME void GOMP_parallel(void (*body)(void*), void* data, unsigned wanted, unsigned) {
  const int threads = wanted > 0 ? static_cast<int>(wanted) : at::get_num_threads();
  // As in libgomp, a region within a region has one thread.
  if (threads == 1 || place.barrier != nullptr) {
    const Place before = std::exchange(place, Place{});
    body(data);
    place = before;
    return;
  }
  const uintptr_t region = place_in_library(body);
  const bool same_share = overlaps(region);
  static const bool printed = std::getenv("AR_FAST_REGIONS") != nullptr;
  if (printed) std::fprintf(stderr, "region: %zx\n", region);
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, nullptr, static_cast<unsigned>(threads));
  const auto run = [&](int number) {
    place = {threads, same_share ? 0 : number, &barrier};
    body(data);
    place = {};
  };
  std::vector<std::thread> others;
  for (int number = 1; number < threads; ++number) others.emplace_back(run, number);
  run(0);
  for (std::thread& other : others) other.join();
  pthread_barrier_destroy(&barrier);
}

AR_FAST_RUNTIME void GOMP_barrier() {
  if (place.barrier != nullptr && !broken("barriers")) pthread_barrier_wait(place.barrier);
}

// By the linker's option --wrap: the sanitizer's own function, and those of the C library, whose accesses it leaves out
// for being told to leave out torch's.
extern "C" uint64_t __real___tsan_atomic64_load(const volatile uint64_t* from, int order);
AR_FAST_RUNTIME uint64_t __wrap___tsan_atomic64_load(const volatile uint64_t* from, int order) {
  return __real___tsan_atomic64_load(from, broken("loads") ? __ATOMIC_RELAXED : order);
}

extern "C" void __tsan_read_range(void* from, size_t bytes);
extern "C" void __tsan_write_range(void* to, size_t bytes);
extern "C" void* __real_memcpy(void* to, const void* from, size_t bytes);
extern "C" void* __real_memmove(void* to, const void* from, size_t bytes);
extern "C" void* __real_memset(void* to, int value, size_t bytes);

AR_FAST_RUNTIME void* __wrap_memcpy(void* to, const void* from, size_t bytes) {
  __tsan_read_range(const_cast<void*>(from), bytes);
  __tsan_write_range(to, bytes);
  return __real_memcpy(to, from, bytes);
}

AR_FAST_RUNTIME void* __wrap_memmove(void* to, const void* from, size_t bytes) {
  __tsan_read_range(const_cast<void*>(from), bytes);
  __tsan_write_range(to, bytes);
  return __real_memmove(to, from, bytes);
}

AR_FAST_RUNTIME void* __wrap_memset(void* to, int value, size_t bytes) {
  __tsan_write_range(to, bytes);
  return __real_memset(to, value, bytes);
}
