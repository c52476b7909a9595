// The one header that a .cu file includes: launches, shared memory, vector accesses, conversions, warp reductions,
// asynchronous copies and matrix instructions. Compiled by nvcc it is CUDA; with AR_FAST_EMULATE_CUDA, plain C++ over
// testing/cuda_emulation.h. No kernel uses <<<>>>, __shared__ or inline PTX of its own.
#pragma once

#if defined(AR_FAST_EMULATE_CUDA)
#include "../../testing/cuda_instructions.h"
#else
#include <cuda_runtime.h>

#include <cstring>
#include <type_traits>
#include <utility>
#endif

#include <limits>

#include "../philox.h"
#include "../types.h"
#include "launcher.h"

namespace ar_fast::cuda {

constexpr uint32_t kFullMask = 0xFFFFFFFFu;
constexpr int kWarpSize = 32;

// ---- Launching ------------------------------------------------------------------------------------------------------

struct LaunchConfig {
  const char* name;  // for messages
  dim3 grid, block;
  size_t dynamic_shared_bytes = 0;
  cudaStream_t stream = nullptr;
  bool co_resident = false;  // every block of the grid runs at the same time: blocks may wait for one another
};

#if !defined(AR_FAST_EMULATE_CUDA)
// Static and dynamic shared memory of a block come to 48 KB together at most, unless the kernel asks for more before
// its launch. It asks for all that the device can give beside its static part: the same for every caller, so that
// two threads that launch the kernel with different sizes cannot lower each other's limit.
template <typename Kernel>
cudaError_t raise_shared_limit(Kernel* kernel) {
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  cudaFuncAttributes attributes;
  error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  const int dynamic = most - static_cast<int>(attributes.sharedSizeBytes);
  if (attributes.maxDynamicSharedSizeBytes >= dynamic) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic);
}
#endif

// Asynchronous: returns the error of the launch, not of the run (the emulation has run the grid and returns its error).
template <typename... Parameters, typename... Arguments>
cudaError_t launch(const LaunchConfig& config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  // Whatever the size: the kernel's static part counts too.
  const bool raises_shared_limit = config.dynamic_shared_bytes > 0;
#if defined(AR_FAST_EMULATE_CUDA)
  const std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  emulation::LaunchShape shape{config.name, config.grid, config.block, config.dynamic_shared_bytes, config.co_resident};
  shape.argument_bytes = emulation::argument_bytes<Parameters...>();
  shape.raises_shared_limit = raises_shared_limit;
  return emulation::run_grid(shape, [&] { std::apply(kernel, values); });
#else
  if (raises_shared_limit) {
    const cudaError_t error = raise_shared_limit(kernel);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute cooperative;
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t launch_config = {};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.dynamic_shared_bytes;
  launch_config.stream = config.stream;
  launch_config.attrs = &cooperative;
  launch_config.numAttrs = config.co_resident ? 1 : 0;
  return cudaLaunchKernelEx(&launch_config, kernel, std::forward<Arguments>(arguments)...);
#endif
}

// Blocks of so many threads, without dynamic shared memory, that a multiprocessor of the current device runs at once; 0
// where that cannot be told.
template <typename Kernel>
int resident_blocks([[maybe_unused]] Kernel* kernel, [[maybe_unused]] int threads) {
#if defined(AR_FAST_EMULATE_CUDA)
  return 1;
#else
  int blocks = 0;
  const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0);
  if (error != cudaSuccess) cudaGetLastError();  // the caller takes another kernel: no error is left behind
  return error == cudaSuccess ? blocks : 0;
#endif
}

// ---- The device -----------------------------------------------------------------------------------------------------

struct Device {
  int capability;  // the major version: 7 for sm_75, 8 for sm_80, 9 for sm_90
  int multiprocessors;
  int shared_bytes;  // that a block can have at most
};

// The current device, without synchronising.
inline cudaError_t current_device(Device& device) {
#if defined(AR_FAST_EMULATE_CUDA)
  device = {emulation::capability, emulation::multiprocessors, emulation::shared_bytes()};
  return cudaSuccess;
#else
  int index = 0;
  cudaError_t error = cudaGetDevice(&index);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&device.capability, cudaDevAttrComputeCapabilityMajor, index);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index);
#endif
}

// ---- Shared memory --------------------------------------------------------------------------------------------------

// AR_FAST_SHARED(float, tile, [32][33]) declares a static array of the block.
// AR_FAST_DYNAMIC_SHARED(float, buffer) names the dynamic shared memory of the launch, aligned to 128 bytes.
#if defined(AR_FAST_EMULATE_CUDA)
#define AR_FAST_SHARED(type, name, extents) \
  static const char name##_tag = 0;         \
  using name##_type = type extents;         \
  name##_type& name =                       \
      *static_cast<name##_type*>(::ar_fast::emulation::static_shared(&name##_tag, sizeof(name##_type), 16))
#define AR_FAST_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::ar_fast::emulation::dynamic_shared())
#else
#define AR_FAST_SHARED(type, name, extents) __shared__ __align__(16) type name extents
#define AR_FAST_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(128) unsigned char ar_fast_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(ar_fast_dynamic_shared)
#endif

// ---- Storage and compute types --------------------------------------------------------------------------------------

template <typename Storage>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename Storage>
using Compute = typename ComputeOf<Storage>::type;

__device__ __forceinline__ float to_compute(float value) { return value; }
__device__ __forceinline__ double to_compute(double value) { return value; }
__device__ __forceinline__ float to_compute(bfloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float to_compute(float16 value) {
#if defined(AR_FAST_EMULATE_CUDA)
  return emulation::half_to_float(value.bits);
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#endif
}

// from_compute rounds to nearest, ties to even.
__device__ __forceinline__ void from_compute(float& stored, float value) { stored = value; }
__device__ __forceinline__ void from_compute(double& stored, double value) { stored = value; }
__device__ __forceinline__ void from_compute(bfloat16& stored, float value) {
  const uint32_t bits = __float_as_uint(value);
  stored.bits = value != value ? uint16_t{0x7FFF} : static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}
__device__ __forceinline__ void from_compute(float16& stored, float value) {
#if defined(AR_FAST_EMULATE_CUDA)
  stored.bits = emulation::float_to_half(value);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(stored.bits) : "f"(value));
#endif
}

template <typename T>
constexpr T not_a_number = std::numeric_limits<T>::quiet_NaN();
template <typename T>
constexpr T infinity = std::numeric_limits<T>::infinity();

// The same pointer, which the compiler keeps in registers: it does not see how to make it anew where it is needed.
template <typename T>
__device__ __forceinline__ const T* keep(const T* pointer) {
#if !defined(AR_FAST_EMULATE_CUDA)
  asm("" : "+l"(pointer));
#endif
  return pointer;
}

// Calls body(S{}) for the storage type S.
template <typename Body>
inline cudaError_t dispatch_storage(ScalarType storage, const Body& body) {
  switch (storage) {
    case ScalarType::float32: return body(float{});
    case ScalarType::float16: return body(float16{});
    case ScalarType::bfloat16: return body(bfloat16{});
    case ScalarType::float64: return body(double{});
  }
  return cudaErrorInvalidValue;
}

// What a sampler's block keeps in shared memory at most: two blocks of this much fit in an SM of sm_80 and later; sm_75
// has 64 KiB.
constexpr int64_t kMostSharedBytes = 60 * 1024;

// ---- Vector accesses ------------------------------------------------------------------------------------------------

// 128 bits of T. load_vector and store_vector need 16-byte alignment: take them only where the base pointer and the row
// stride in bytes are multiples of 16 (vectors_fit), scalars otherwise.
template <typename T>
struct alignas(16) Vector {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
};

template <typename T>
__host__ __device__ inline bool vectors_fit(const T* base, int64_t row_elements) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && row_elements * static_cast<int64_t>(sizeof(T)) % 16 == 0;
}

// For memory that nothing writes while the kernel runs (ld.global.nc); for shared memory and what the kernel itself has
// written, load_shared_vector.
template <typename T>
__device__ __forceinline__ Vector<T> load_vector(const T* address) {
  Vector<T> result;
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::check_aligned(address, 16, "128-bit load");
  std::memcpy(&result, address, 16);
#else
  const uint4 bits = __ldg(reinterpret_cast<const uint4*>(address));
  memcpy(&result, &bits, 16);
#endif
  return result;
}

// Brings the 128 bytes around an address of global memory into the L2 cache, later.
__device__ __forceinline__ void prefetch_l2([[maybe_unused]] const void* address) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(address)));
#endif
}

// Units u ... u + N - 1 of a weight row as stored, N = the elements of 128 bits; zero past the last hidden unit.
template <typename S>
__device__ __forceinline__ Vector<S> load_stored(const S* row, int u, int hidden, bool aligned) {
  Vector<S> loaded{};
  if (aligned) {
    if (u < hidden) loaded = load_vector(row + u);
  } else {
#pragma unroll
    for (int i = 0; i < Vector<S>::size; ++i) {
      if (u + i < hidden) loaded.values[i] = row[u + i];
    }
  }
  return loaded;
}

template <typename T>
__device__ __forceinline__ Vector<T> load_shared_vector(const T* address) {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::check_aligned(address, 16, "128-bit load of shared memory");
#endif
  return *reinterpret_cast<const Vector<T>*>(address);
}

template <typename T>
__device__ __forceinline__ void store_vector(T* address, const Vector<T>& value) {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::check_aligned(address, 16, "128-bit store");
#endif
  *reinterpret_cast<Vector<T>*>(address) = value;
}

// Two numbers side by side, at an address that is aligned to both together.
template <typename T>
__device__ __forceinline__ void store_pair(T* address, T first, T second) {
  struct alignas(2 * sizeof(T)) Pair {
    T values[2];
  };
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::check_aligned(address, sizeof(Pair), "store of a pair");
#endif
  *reinterpret_cast<Pair*>(address) = Pair{{first, second}};
}

// ---- Warp reductions ------------------------------------------------------------------------------------------------

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarpSize; }

// The sum over the warp, in every lane; the order of the additions is fixed.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) value += __shfl_xor_sync(kFullMask, value, bits);
  return value;
}

// The largest of the warp's numbers, in every lane.
template <typename T>
__device__ __forceinline__ T warp_max(T value) {
#pragma unroll
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    const T other = __shfl_xor_sync(kFullMask, value, bits);
    value = other > value ? other : value;
  }
  return value;
}

// The sum over this lane and those below it; the order of the additions is fixed.
template <typename T>
__device__ __forceinline__ T warp_running_sum(T value) {
#pragma unroll
  for (unsigned step = 1; step < kWarpSize; step *= 2) {
    const T below = __shfl_up_sync(kFullMask, value, step);
    if (lane_id() >= static_cast<int>(step)) value += below;
  }
  return value;
}

// Sums eight values over the warp with 9 shuffles instead of 40: lane l gets the sum of values[l / 4].
template <typename T>
__device__ __forceinline__ T warp_sum_8(const T (&values)[8]) {
  const int lane = lane_id();
  T four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool upper = lane & 16;
    four[i] = (upper ? values[i + 4] : values[i]) + __shfl_xor_sync(kFullMask, upper ? values[i] : values[i + 4], 16);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool upper = lane & 8;
    two[i] = (upper ? four[i + 2] : four[i]) + __shfl_xor_sync(kFullMask, upper ? four[i] : four[i + 2], 8);
  }
  const bool upper = lane & 4;
  T sum = (upper ? two[1] : two[0]) + __shfl_xor_sync(kFullMask, upper ? two[0] : two[1], 4);
  sum += __shfl_xor_sync(kFullMask, sum, 2);
  sum += __shfl_xor_sync(kFullMask, sum, 1);
  return sum;
}

// Sums four values over the warp with 6 shuffles: lane l gets the sum of values[l / 8].
template <typename T>
__device__ __forceinline__ T warp_sum_4(const T (&values)[4]) {
  const int lane = lane_id();
  T two[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool upper = lane & 16;
    two[i] = (upper ? values[i + 2] : values[i]) + __shfl_xor_sync(kFullMask, upper ? values[i] : values[i + 2], 16);
  }
  const bool upper = lane & 8;
  T sum = (upper ? two[1] : two[0]) + __shfl_xor_sync(kFullMask, upper ? two[0] : two[1], 8);
#pragma unroll
  for (int bits = 4; bits > 0; bits /= 2) sum += __shfl_xor_sync(kFullMask, sum, bits);
  return sum;
}

// ---- Fast instructions ----------------------------------------------------------------------------------------------

// 2^x, relative error 2^-22; subnormal results are zero.
__device__ __forceinline__ float exp2_instruction(float x) {
#if defined(AR_FAST_EMULATE_CUDA)
  return emulation::flush_subnormal(std::exp2(x));
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}

// 1 / x within 1 ulp; subnormal results are zero.
__device__ __forceinline__ float reciprocal_instruction(float x) {
#if defined(AR_FAST_EMULATE_CUDA)
  return emulation::flush_subnormal(1.0f / x);
#else
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}

// cos(pi x). cos itself would reduce large arguments in local memory.
__device__ __forceinline__ double cos_pi(double x) {
#if defined(AR_FAST_EMULATE_CUDA)
  return std::cos(3.141592653589793238463 * x);
#else
  return cospi(x);
#endif
}

// x within [low, high]; NaN stays NaN.
__device__ __forceinline__ float clamp_keep_nan(float x, float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(low));
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(result), "f"(high));
  return result;
#else
  x = x < low ? low : x;
  return x > high ? high : x;
#endif
}

// ---- Waiting for other blocks ---------------------------------------------------------------------------------------

// Sees what the thread that stored the value with store_release had written before. Loops that wait for a value are
// made of it.
__device__ __forceinline__ int load_acquire(const int* address) {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::yield();
  return __atomic_load_n(address, __ATOMIC_ACQUIRE);
#elif defined(__CUDA_ARCH__)
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
#else
  return *address;
#endif
}

__device__ __forceinline__ uint64_t load_acquire(const uint64_t* address) {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::yield();
  return __atomic_load_n(address, __ATOMIC_ACQUIRE);
#elif defined(__CUDA_ARCH__)
  uint64_t value;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
#else
  return *address;
#endif
}

__device__ __forceinline__ void store_release(int* address, int value) {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::maybe_yield();
  __atomic_store_n(address, value, __ATOMIC_RELEASE);
#elif defined(__CUDA_ARCH__)
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
#else
  *address = value;
#endif
}

__device__ __forceinline__ void store_release(uint64_t* address, uint64_t value) {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::maybe_yield();
  __atomic_store_n(address, value, __ATOMIC_RELEASE);
#elif defined(__CUDA_ARCH__)
  asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
#else
  *address = value;
#endif
}

// Words that say all there is to know order nothing besides: a relaxed store waits for no store before it, and a
// relaxed load throws nothing out of the L1 cache. Also two words side by side, at 16 bytes: each of them is whole.
__device__ __forceinline__ void store_relaxed(uint64_t* address, uint64_t value) {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::maybe_yield();
  __atomic_store_n(address, value, __ATOMIC_RELAXED);
#elif defined(__CUDA_ARCH__)
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
#else
  *address = value;
#endif
}

__device__ __forceinline__ uint64_t load_relaxed(const uint64_t* address) {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::yield();
  return __atomic_load_n(address, __ATOMIC_RELAXED);
#elif defined(__CUDA_ARCH__)
  uint64_t value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
#else
  return *address;
#endif
}

__device__ __forceinline__ void load_relaxed(const uint64_t* address, uint64_t (&values)[2]) {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::check_aligned(address, 16, "128-bit load");
  emulation::yield();
  for (int i = 0; i < 2; ++i) values[i] = __atomic_load_n(address + i, __ATOMIC_RELAXED);
#elif defined(__CUDA_ARCH__)
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(values[0]), "=l"(values[1])
               : "l"(address)
               : "memory");
#else
  for (int i = 0; i < 2; ++i) values[i] = address[i];
#endif
}

// Adds, so that who reads the sum with load_acquire sees what this thread had written before, and what the threads had
// that it has met at a barrier.
__device__ __forceinline__ void add_release(int* address, int value) {
#if defined(AR_FAST_EMULATE_CUDA)
  atomicAdd(address, value);
#elif defined(__CUDA_ARCH__)
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
#else
  *address += value;
#endif
}

// ---- Asynchronous copies to shared memory ---------------------------------------------------------------------------

#if !defined(AR_FAST_EMULATE_CUDA)
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
#endif

// Starts a copy of 16 bytes, of which those past source_bytes become zero. Both addresses are aligned to 16 bytes.
// The data may be read after copy_async_wait and a barrier. Below sm_80 the copy is done at once.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int source_bytes = 16) {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::copy_async(shared, global, 16, static_cast<size_t>(source_bytes));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(source_bytes)
               : "memory");
#else
  const unsigned char* source = static_cast<const unsigned char*>(global);
  unsigned char* target = static_cast<unsigned char*>(shared);
  if (source_bytes == 16) {
    *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
  } else {
    for (int i = 0; i < 16; ++i) target[i] = i < source_bytes ? source[i] : 0;
  }
#endif
}

__device__ __forceinline__ void copy_async_commit() {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::commit_async();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most groups_left of this thread's committed groups are still under way.
template <int groups_left>
__device__ __forceinline__ void copy_async_wait() {
#if defined(AR_FAST_EMULATE_CUDA)
  emulation::wait_async(groups_left);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
#endif
}

}  // namespace ar_fast::cuda

#include "matrix.h"
