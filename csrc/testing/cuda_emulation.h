// CUDA on the host, for the tests: a .cu file compiled as plain C++ against this header runs without a GPU.
//
// Every thread of a block is a fiber. A fiber runs until it waits (barrier, warp operation, spin), so a race never
// shows by chance; it shows by changing the order in which fibers run: forward (lowest thread first), reverse, or
// random. Set it with ar_fast_emulation_set_order or AR_FAST_EMULATION_ORDER = forward | reverse | random[:seed].
//
// What a GPU leaves undefined or refuses is an error here, returned by the launch with a message that names kernel,
// block and thread: launches past a limit of CUDA (run_grid, below); threads that wait at different barriers or warp
// operations, or for a thread that has exited; vector accesses that are not aligned; waiting for a cp.async that was
// never committed shows as NaN, since its data lands only at the wait. Shared memory is filled with NaN (bytes 0xFF)
// before each block. AddressSanitizer sees every access out of bounds, as every shared array is an allocation of its
// own.
//
// Under ThreadSanitizer (races/races.cpp) each fiber is a thread of its own, and only barriers, warp operations and
// atomics order what different ones do: a race is reported whatever the order in which they ran.
#pragma once

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>

#include "cuda_types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
// Headers of the library say __attribute__((__noinline__)): they are included before this one.
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace ar_fast::emulation {

struct ThreadIndex {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};

struct LaunchShape {
  const char* kernel;
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  bool co_resident;  // all blocks run at the same time, as in a cooperative launch; otherwise one after another
  size_t argument_bytes = 0;
  bool raises_shared_limit = false;  // asked beforehand for more shared memory than any launch may have
};

// The device that launchers see; ar_fast_emulation_set_device sets it.
inline int capability = 9, multiprocessors = 132;
// Static and dynamic shared memory of a block at most: of the least device of each major capability (sm_75, sm_86,
// sm_90).
inline int shared_bytes() { return (capability >= 9 ? 227 : capability == 8 ? 99 : 64) * 1024; }

// What the arguments of a kernel take, each at its alignment.
template <typename... Parameters>
constexpr size_t argument_bytes() {
  size_t bytes = 0;
  ((bytes = (bytes + alignof(Parameters) - 1) / alignof(Parameters) * alignof(Parameters) + sizeof(Parameters)), ...);
  return bytes;
}

// Refuses what CUDA refuses: more than 4,096 bytes of arguments; a block of more than 1,024 threads; a grid of more
// than 65,535 blocks in y or z; more than 48 KiB of static and dynamic shared memory together where the kernel did not
// ask for more, and more than the device has for a block where it did.
cudaError_t run_grid(const LaunchShape& shape, const std::function<void()>& thread);
const char* error_message(cudaError_t error);

// Of the thread that runs.
const ThreadIndex& index();
// Ends the launch with an error that names kernel, block and thread.
[[noreturn]] void fail(cudaError_t error, const std::string& message);
void check_aligned(const void* address, size_t bytes, const char* what);
// Lets other threads run: called wherever a GPU thread would spin.
void yield();
// Where the order is random: perhaps lets other threads run.
void maybe_yield();

void* dynamic_shared();
// The block's static array declared at `tag`, filled with NaN at its first use in the block.
void* static_shared(const void* tag, size_t bytes, size_t alignment);

struct Site {
  const char* operation;
  const char* file;
  int line;
};

struct Votes {
  int count, threads;
};
// Waits until every thread of the block has come to the same site.
Votes block_barrier(const Site& site, bool predicate);

// What one lane brings to a warp operation. The last lane to arrive calls `complete`, which reads the operand of every
// lane in `mask` and writes the result of every one.
struct WarpOperation {
  Site site;
  uint32_t mask;
  const void* operand;
  void* result;
  void (*complete)(const WarpOperation* const lanes[32], uint32_t mask);
};
void warp_operation(const WarpOperation& operation);

template <typename Operand, typename Result>
using WarpBody = void (*)(const Operand* const operands[32], Result* const results[32], uint32_t mask);

template <typename Operand, typename Result, WarpBody<Operand, Result> body>
Result warp_collective(const Site& site, uint32_t mask, const Operand& operand) {
  Result result{};
  warp_operation({site, mask, &operand, &result, [](const WarpOperation* const lanes[32], uint32_t mask) {
                    const Operand* operands[32] = {};
                    Result* results[32] = {};
                    for (int lane = 0; lane < 32; ++lane) {
                      if (!(mask >> lane & 1)) continue;
                      operands[lane] = static_cast<const Operand*>(lanes[lane]->operand);
                      results[lane] = static_cast<Result*>(lanes[lane]->result);
                    }
                    body(operands, results, mask);
                  }});
  return result;
}

// From here on the __syncthreads() in a line of a file, named without its folder, order nothing.
void skip_barrier(const std::string& file, int line);

void copy_async(void* shared, const void* global, size_t bytes, size_t source_bytes);
void commit_async();
void wait_async(int groups_left);

}  // namespace ar_fast::emulation

#define threadIdx (::ar_fast::emulation::index().thread)
#define blockIdx (::ar_fast::emulation::index().block)
#define blockDim (::ar_fast::emulation::index().block_dim)
#define gridDim (::ar_fast::emulation::index().grid_dim)

#define AR_FAST_SITE(operation) \
  ::ar_fast::emulation::Site { operation, file, line }
#define AR_FAST_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(AR_FAST_HERE) { ar_fast::emulation::block_barrier(AR_FAST_SITE("__syncthreads"), false); }
inline int __syncthreads_count(bool predicate, AR_FAST_HERE) {
  return ar_fast::emulation::block_barrier(AR_FAST_SITE("__syncthreads_count"), predicate).count;
}
inline int __syncthreads_or(bool predicate, AR_FAST_HERE) {
  return ar_fast::emulation::block_barrier(AR_FAST_SITE("__syncthreads_or"), predicate).count > 0;
}
inline int __syncthreads_and(bool predicate, AR_FAST_HERE) {
  const auto votes = ar_fast::emulation::block_barrier(AR_FAST_SITE("__syncthreads_and"), predicate);
  return votes.count == votes.threads;
}

namespace ar_fast::emulation {

struct Nothing {};

template <typename T>
struct PlainType {
  using type = T;
};
// T, but not deduced from: the second argument of an atomic converts to the type of the first.
template <typename T>
using Plain = typename PlainType<T>::type;

inline void synchronise(const Nothing* const*, Nothing* const*, uint32_t) {}

inline void vote(const bool* const predicates[32], uint32_t* const results[32], uint32_t mask) {
  uint32_t ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) ballot |= static_cast<uint32_t>(*predicates[lane]) << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) *results[lane] = ballot;
  }
}

template <typename T>
struct Shuffle {
  T value;
  uint32_t source;  // lane to read
};

template <typename T>
struct Shuffled {
  T value;
  bool read_outside;  // the source lane takes no part: its value is undefined
};

template <typename T>
void shuffle(const Shuffle<T>* const lanes[32], Shuffled<T>* const results[32], uint32_t mask) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const uint32_t source = lanes[lane]->source;
    const bool inside = mask >> source & 1;
    *results[lane] = {inside ? lanes[source]->value : lanes[lane]->value, !inside};
  }
}

template <typename T>
T shuffle_from(const Site& site, uint32_t mask, T value, uint32_t source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 32-bit and 64-bit values");
  const auto result = warp_collective<Shuffle<T>, Shuffled<T>, shuffle<T>>(site, mask, Shuffle<T>{value, source});
  if (result.read_outside) {
    fail(cudaErrorLaunchFailure, std::string(site.operation) + " at " + site.file + ":" + std::to_string(site.line) +
                                     " reads lane " + std::to_string(source) + ", which is not in the mask");
  }
  return result.value;
}

inline uint32_t lane() {
  const ThreadIndex& at = index();
  return (at.thread.x + at.block_dim.x * (at.thread.y + at.block_dim.y * at.thread.z)) % 32;
}

}  // namespace ar_fast::emulation

inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu, AR_FAST_HERE) {
  using namespace ar_fast::emulation;
  warp_collective<Nothing, Nothing, synchronise>(AR_FAST_SITE("__syncwarp"), mask, Nothing{});
}
inline uint32_t __ballot_sync(uint32_t mask, bool predicate, AR_FAST_HERE) {
  using namespace ar_fast::emulation;
  return warp_collective<bool, uint32_t, vote>(AR_FAST_SITE("__ballot_sync"), mask, predicate);
}
inline int __any_sync(uint32_t mask, bool predicate, AR_FAST_HERE) {
  using namespace ar_fast::emulation;
  return (warp_collective<bool, uint32_t, vote>(AR_FAST_SITE("__any_sync"), mask, predicate)) != 0;
}
inline int __all_sync(uint32_t mask, bool predicate, AR_FAST_HERE) {
  using namespace ar_fast::emulation;
  return (warp_collective<bool, uint32_t, vote>(AR_FAST_SITE("__all_sync"), mask, predicate)) == mask;
}
template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, AR_FAST_HERE) {
  return ar_fast::emulation::shuffle_from(AR_FAST_SITE("__shfl_sync"), mask, value, static_cast<uint32_t>(source) & 31);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, AR_FAST_HERE) {
  return ar_fast::emulation::shuffle_from(AR_FAST_SITE("__shfl_xor_sync"), mask, value,
                                          (ar_fast::emulation::lane() ^ static_cast<uint32_t>(bits)) & 31);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, AR_FAST_HERE) {
  const uint32_t lane = ar_fast::emulation::lane();
  return ar_fast::emulation::shuffle_from(AR_FAST_SITE("__shfl_down_sync"), mask, value,
                                          lane + delta < 32 ? lane + delta : lane);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, AR_FAST_HERE) {
  const uint32_t lane = ar_fast::emulation::lane();
  return ar_fast::emulation::shuffle_from(AR_FAST_SITE("__shfl_up_sync"), mask, value,
                                          lane >= delta ? lane - delta : lane);
}

#undef AR_FAST_HERE
#undef AR_FAST_SITE

using std::max;
using std::min;

namespace ar_fast::emulation {

// *address becomes next(old); returns old. Fibers are never preempted, so it succeeds at once; for ThreadSanitizer
// it is an atomic operation.
template <typename T, typename Next>
T update(T* address, const Next& next) {
  maybe_yield();
  T old, value;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do {
    value = next(old);
  } while (!__atomic_compare_exchange(address, &old, &value, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
  return old;
}

}  // namespace ar_fast::emulation

template <typename T>
T atomicAdd(T* address, ar_fast::emulation::Plain<T> value) {
  return ar_fast::emulation::update(address, [&](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMax(T* address, ar_fast::emulation::Plain<T> value) {
  return ar_fast::emulation::update(address, [&](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicExch(T* address, ar_fast::emulation::Plain<T> value) {
  return ar_fast::emulation::update(address, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, ar_fast::emulation::Plain<T> compare, ar_fast::emulation::Plain<T> value) {
  return ar_fast::emulation::update(address, [&](T old) { return old == compare ? value : old; });
}
inline void __threadfence() { ar_fast::emulation::maybe_yield(); }
inline void __nanosleep(unsigned) { ar_fast::emulation::yield(); }

template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
