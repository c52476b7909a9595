// The scheduler of the emulation: which fiber runs next, what each one waits for, and what is wrong when none can run.
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <vector>

#include "cuda_emulation.h"
#include "fiber.h"

namespace ar_fast::emulation {

namespace {

enum class Order { forward = 0, reverse = 1, random = 2 };

struct Settings {
  Order order = Order::forward;
  uint64_t seed = 0;
};

Settings settings_from_environment() {
  Settings settings;
  const char* text = std::getenv("AR_FAST_EMULATION_ORDER");
  if (text == nullptr) return settings;
  const std::string order(text);
  if (order == "reverse") settings.order = Order::reverse;
  if (order.rfind("random", 0) == 0) {
    settings.order = Order::random;
    const size_t colon = order.find(':');
    if (colon != std::string::npos) settings.seed = std::strtoull(order.c_str() + colon + 1, nullptr, 10);
  }
  return settings;
}

Settings& settings() {
  static Settings value = settings_from_environment();
  return value;
}

// While it is on, launches are noted and not run.
bool recording = false;
std::string recorded;

// One line: name, grid, block, dynamic shared memory, and whether every block runs at the same time.
void record(const LaunchShape& shape) {
  const auto add = [](const dim3& extent) {
    for (const unsigned e : {extent.x, extent.y, extent.z}) recorded += " " + std::to_string(e);
  };
  recorded += shape.kernel;
  add(shape.grid);
  add(shape.block);
  recorded += " " + std::to_string(shape.dynamic_shared_bytes) + (shape.co_resident ? " 1\n" : " 0\n");
}

constexpr size_t kSharedBytes = 48 * 1024;  // static and dynamic, of a block whose kernel did not ask for more
constexpr size_t kArgumentBytes = 4096;

size_t shared_limit(const LaunchShape& shape) {
  return shape.raises_shared_limit ? static_cast<size_t>(shared_bytes()) : kSharedBytes;
}

constexpr int kIdleRounds = 200000;  // rounds of nothing but spinning that count as a hang

// Shared memory is aligned as on the device and as long as was asked for, so that AddressSanitizer finds the end.
class SharedArray {
 public:
  SharedArray(size_t bytes, size_t alignment)
      : memory_(::operator new(bytes == 0 ? 1 : bytes, std::align_val_t(alignment))), alignment_(alignment) {
    std::memset(memory_, 0xFF, bytes);
  }
  SharedArray(SharedArray&& other) noexcept : memory_(other.memory_), alignment_(other.alignment_) {
    other.memory_ = nullptr;
  }
  ~SharedArray() {
    if (memory_ != nullptr) ::operator delete(memory_, std::align_val_t(alignment_));
  }
  void* get() const { return memory_; }

 private:
  void* memory_;
  size_t alignment_;
};

struct AsyncCopy {
  void* shared;
  const void* global;
  size_t bytes, source_bytes;
};

struct Block;
struct Warp;

struct Thread {
  ThreadIndex index;
  Block* block = nullptr;
  Warp* warp = nullptr;
  uint32_t lane = 0;
  Fiber fiber;
  const Site* waiting_block = nullptr;          // the block barrier it waits at
  const WarpOperation* waiting_warp = nullptr;  // the warp operation it waits at
  Votes votes = {};
  void* seen = nullptr;  // what is visible after the barrier or warp operation that it waits at
  std::vector<AsyncCopy> open_copies;
  std::vector<std::vector<AsyncCopy>> committed_copies;
};

// Places that ThreadSanitizer knows what is ordered by. Each is used for one thing in one launch.
struct SyncPoints {
  char arrived = 0;    // what the threads did before they came
  char done[64] = {};  // and what may be seen after the n-th barrier or warp operation, by turns
  unsigned turn = 0;

  // Called by the last to come, on its fiber, which then sees what the others did; returns where they look for what it
  // does in complete().
  template <typename Complete>
  void* last_arrived(const Complete& complete) {
    acquire(&arrived);
    complete();
    void* const point = &done[turn++ % sizeof done];
    release(point);
    return point;
  }
};

struct Warp {
  SyncPoints* sync = nullptr;
  Thread* lanes[32] = {};
  uint32_t ready = 0;    // lanes that can run
  uint32_t yielded = 0;  // lanes that can run once nothing else can
};

struct Block {
  SyncPoints* sync = nullptr;
  std::vector<Thread*> threads;
  std::unique_ptr<SharedArray> dynamic_shared;
  std::map<const void*, SharedArray> static_shared;
  size_t shared_bytes = 0, static_shared_bytes = 0;
  int arrived = 0, votes = 0;
};

struct Launch {
  LaunchShape shape;
  std::function<void()> thread;
  std::vector<Warp> warps;
  cudaError_t error = cudaSuccess;
  bool progress = false;  // since the last round of spinning
  // Kept to the end of the launch under ThreadSanitizer: reused memory would look like a race between blocks.
  std::deque<std::vector<Block>> blocks;
  size_t threads_begun = 0;
  std::deque<SyncPoints> sync_points;
  char begun = 0, ended = 0;  // what the host did before, and the threads by their end
  std::mt19937_64 random;
};

// __syncthreads() that are passed over, by line of a file: to see that what they order would be reported.
std::set<int> skipped_barriers;
std::string skipped_file;

std::string base_name(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

std::mutex launch_mutex;  // one grid runs at a time
Launch* launch = nullptr;
Thread* current = nullptr;
std::vector<std::unique_ptr<Thread>> thread_pool;
thread_local std::string last_error;

std::string triple(unsigned x, unsigned y, unsigned z) {
  return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}

std::string name(const Thread& thread) {
  const uint3& at = thread.index.thread;
  return "thread " + triple(at.x, at.y, at.z);
}

std::string name(const Site& site) {
  return std::string(site.operation) + " (" + site.file + ":" + std::to_string(site.line) + ")";
}

std::string state(const Thread& thread) {
  if (thread.fiber.done()) return name(thread) + " has exited";
  if (thread.waiting_block != nullptr) return name(thread) + " waits at " + name(*thread.waiting_block);
  if (thread.waiting_warp != nullptr) {
    char mask[16];
    std::snprintf(mask, sizeof mask, "0x%08x", thread.waiting_warp->mask);
    return name(thread) + " waits at " + name(thread.waiting_warp->site) + " with mask " + mask;
  }
  return name(thread) + " spins";
}

void set_error(cudaError_t error, const Thread& thread, const std::string& message) {
  const uint3& block = thread.index.block;
  launch->error = error;
  last_error = std::string(launch->shape.kernel) + ": block " + triple(block.x, block.y, block.z) + ": " + message;
}

bool same(const Site& a, const Site& b) {
  return a.line == b.line && std::strcmp(a.file, b.file) == 0 && std::strcmp(a.operation, b.operation) == 0;
}

bool same(const WarpOperation& a, const WarpOperation& b) { return a.mask == b.mask && same(a.site, b.site); }

void make_ready(Thread& thread) {
  thread.waiting_block = nullptr;
  thread.waiting_warp = nullptr;
  thread.warp->ready |= 1u << thread.lane;
  launch->progress = true;
}

void wait() {
  current->warp->ready &= ~(1u << current->lane);
  current->fiber.suspend();
}

// No thread can run: finds one that waits and one that keeps it waiting.
void report_deadlock(const std::vector<Block>& blocks) {
  for (const Block& block : blocks) {
    for (const Thread* thread : block.threads) {
      if (thread->fiber.done()) continue;
      for (const Thread* other : block.threads) {
        bool blocks_it = other->fiber.done() || other->waiting_block == nullptr;
        if (thread->waiting_block != nullptr) {
          blocks_it = blocks_it || !same(*thread->waiting_block, *other->waiting_block);
        } else if (thread->waiting_warp != nullptr) {
          if (other->warp != thread->warp || !(thread->waiting_warp->mask >> other->lane & 1)) continue;
          blocks_it = other->waiting_warp == nullptr || !same(*thread->waiting_warp, *other->waiting_warp);
        }
        if (!blocks_it) continue;
        set_error(cudaErrorLaunchFailure, *thread, "divergence: " + state(*thread) + ", while " + state(*other));
        return;
      }
      if (thread->waiting_warp != nullptr) {
        set_error(cudaErrorLaunchFailure, *thread,
                  "divergence: " + state(*thread) + ", which names lanes that the warp does not have");
        return;
      }
    }
  }
}

Thread* pick(std::vector<Warp>& warps) {
  const size_t count = warps.size();
  const Order order = settings().order;
  const size_t first = order == Order::random ? launch->random() % count : 0;
  for (size_t i = 0; i < count; ++i) {
    Warp& warp = warps[order == Order::reverse ? count - 1 - i : (first + i) % count];
    uint32_t ready = warp.ready;
    if (ready == 0) continue;
    if (order == Order::reverse) return warp.lanes[31 - __builtin_clz(ready)];
    uint32_t skip = order == Order::random ? launch->random() % static_cast<uint32_t>(__builtin_popcount(ready)) : 0;
    for (; skip > 0; --skip) ready &= ready - 1;
    return warp.lanes[__builtin_ctz(ready)];
  }
  return nullptr;
}

void run_thread(void*) {
  acquire(&launch->begun);
  launch->thread();
  release(&launch->ended);
}

// Runs blocks first ... first + count - 1 at the same time. Returns false once the launch has an error.
bool run_blocks(size_t first, size_t count) {
  const LaunchShape& shape = launch->shape;
  const size_t threads = static_cast<size_t>(shape.block.x) * shape.block.y * shape.block.z;
  const size_t warps_per_block = (threads + 31) / 32;
#if !defined(AR_FAST_THREAD_SANITIZER)
  launch->blocks.clear();
  launch->sync_points.clear();
  launch->threads_begun = 0;
#endif
  std::vector<Block>& blocks = launch->blocks.emplace_back(count);
  const size_t first_thread = launch->threads_begun;
  launch->threads_begun += count * threads;
  launch->warps.assign(count * warps_per_block, Warp());
  for (Warp& warp : launch->warps) warp.sync = &launch->sync_points.emplace_back();
  while (thread_pool.size() < launch->threads_begun) thread_pool.push_back(std::make_unique<Thread>());
  for (size_t b = 0; b < count; ++b) {
    const size_t flat = first + b;
    Block& block = blocks[b];
    block.sync = &launch->sync_points.emplace_back();
    block.dynamic_shared = std::make_unique<SharedArray>(shape.dynamic_shared_bytes, 128);
    block.shared_bytes = shape.dynamic_shared_bytes;
    for (size_t t = 0; t < threads; ++t) {
      Thread& thread = *thread_pool[first_thread + b * threads + t];
      thread.index.block = {static_cast<unsigned>(flat % shape.grid.x),
                            static_cast<unsigned>(flat / shape.grid.x % shape.grid.y),
                            static_cast<unsigned>(flat / shape.grid.x / shape.grid.y)};
      thread.index.thread = {static_cast<unsigned>(t % shape.block.x),
                             static_cast<unsigned>(t / shape.block.x % shape.block.y),
                             static_cast<unsigned>(t / shape.block.x / shape.block.y)};
      thread.index.block_dim = shape.block;
      thread.index.grid_dim = shape.grid;
      thread.block = &block;
      thread.lane = static_cast<uint32_t>(t % 32);
      thread.warp = &launch->warps[b * warps_per_block + t / 32];
      thread.warp->lanes[thread.lane] = &thread;
      thread.open_copies.clear();
      thread.committed_copies.clear();
      make_ready(thread);
      thread.fiber.start(run_thread, nullptr);
      block.threads.push_back(&thread);
    }
  }
  release(&launch->begun);
  size_t running = count * threads;
  int idle_rounds = 0;
  while (running > 0) {
    Thread* next = pick(launch->warps);
    if (next == nullptr) {
      bool spinning = false;
      for (Warp& warp : launch->warps) {
        spinning = spinning || warp.yielded != 0;
        warp.ready = warp.yielded;
        warp.yielded = 0;
      }
      idle_rounds = launch->progress ? 0 : idle_rounds + 1;
      launch->progress = false;
      if (!spinning || idle_rounds > kIdleRounds) {
        report_deadlock(blocks);
        if (launch->error == cudaSuccess) {
          set_error(cudaErrorLaunchFailure, *blocks[0].threads[0], "every thread spins and nothing changes");
        }
        return false;
      }
      continue;
    }
    current = next;
    next->fiber.resume();
    current = nullptr;
    if (launch->error != cudaSuccess) return false;
    if (next->fiber.done()) {
      next->warp->ready &= ~(1u << next->lane);
      launch->progress = true;
      --running;
    }
  }
  return true;
}

cudaError_t refuse(cudaError_t error, const char* kernel, const std::string& message) {
  last_error = std::string(kernel) + ": " + message;
  return error;
}

}  // namespace

// The names of what was run, for races.cpp.
std::set<std::string> launched_kernels;

cudaError_t run_grid(const LaunchShape& shape, const std::function<void()>& thread) {
  const dim3 &grid = shape.grid, &block = shape.block;
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64) {
    return refuse(cudaErrorInvalidConfiguration, shape.kernel, "no block of " + triple(block.x, block.y, block.z));
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > INT_MAX || grid.y > 65535 || grid.z > 65535) {
    return refuse(cudaErrorInvalidConfiguration, shape.kernel, "no grid of " + triple(grid.x, grid.y, grid.z));
  }
  if (shape.argument_bytes > kArgumentBytes) {
    return refuse(cudaErrorInvalidValue, shape.kernel, std::to_string(shape.argument_bytes) + " bytes of arguments");
  }
  if (shape.dynamic_shared_bytes > shared_limit(shape)) {
    return refuse(cudaErrorInvalidValue, shape.kernel,
                  std::to_string(shape.dynamic_shared_bytes) + " bytes of dynamic shared memory");
  }
  const std::lock_guard<std::mutex> lock(launch_mutex);
  if (recording) {
    record(shape);
    return cudaSuccess;
  }
  launched_kernels.insert(shape.kernel);
  Launch grid_launch;
  grid_launch.shape = shape;
  grid_launch.thread = thread;
  grid_launch.random.seed(settings().seed);
  launch = &grid_launch;
  const size_t blocks = static_cast<size_t>(grid.x) * grid.y * grid.z;
  if (shape.co_resident) {
    run_blocks(0, blocks);
  } else if (settings().order == Order::reverse) {
    for (size_t b = blocks; b > 0 && run_blocks(b - 1, 1); --b) {
    }
  } else {
    for (size_t b = 0; b < blocks && run_blocks(b, 1); ++b) {
    }
  }
  acquire(&grid_launch.ended);
  launch = nullptr;
  return grid_launch.error;
}

bool note_product(int64_t rows, int64_t columns, int64_t sum) {
  const std::lock_guard<std::mutex> lock(launch_mutex);
  if (recording) {
    recorded += "product " + std::to_string(rows) + " " + std::to_string(columns) + " " + std::to_string(sum) + "\n";
  }
  return recording;
}

const char* error_message(cudaError_t error) { return error == cudaSuccess ? "no error" : last_error.c_str(); }

const ThreadIndex& index() { return current->index; }

void fail(cudaError_t error, const std::string& message) {
  set_error(error, *current, name(*current) + ": " + message);
  current->fiber.suspend();
  __builtin_trap();  // a launch with an error is abandoned
}

void check_aligned(const void* address, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  fail(cudaErrorMisalignedAddress, std::string(what) + " needs an address aligned to " + std::to_string(bytes) +
                                       " bytes, got one " +
                                       std::to_string(reinterpret_cast<uintptr_t>(address) % bytes) + " bytes past");
}

void yield() {
  current->warp->yielded |= 1u << current->lane;
  wait();
}

void maybe_yield() {
  if (settings().order != Order::random || launch->random() % 2 == 0) return;
  yield();
}

void* dynamic_shared() { return current->block->dynamic_shared->get(); }

void* static_shared(const void* tag, size_t bytes, size_t alignment) {
  Block& block = *current->block;
  const auto found = block.static_shared.find(tag);
  if (found != block.static_shared.end()) {
    acquire(found->second.get());
    return found->second.get();
  }
  block.static_shared_bytes += bytes;
  block.shared_bytes += bytes;
  if (block.static_shared_bytes > kSharedBytes || block.shared_bytes > shared_limit(launch->shape)) {
    fail(cudaErrorInvalidValue, "too much shared memory: " + std::to_string(block.static_shared_bytes) +
                                    " bytes static, " + std::to_string(block.shared_bytes) + " in all");
  }
  void* array = nullptr;
  current->fiber.as_scheduler([&] {
    array = block.static_shared.emplace(tag, SharedArray(bytes, alignment)).first->second.get();
    release(array);
  });
  acquire(array);
  return array;
}

Votes block_barrier(const Site& site, bool predicate) {
  if (skipped_barriers.count(site.line) != 0 && skipped_file == base_name(site.file)) return {0, 0};
  Block& block = *current->block;
  release(&block.sync->arrived);
  current->waiting_block = &site;
  block.votes += predicate;
  const int threads = static_cast<int>(block.threads.size());
  if (++block.arrived < threads) {
    wait();
    acquire(current->seen);
    return current->votes;
  }
  for (const Thread* thread : block.threads) {
    if (!same(*thread->waiting_block, site)) {
      fail(cudaErrorLaunchFailure, "divergence: at " + name(site) + ", while " + state(*thread));
    }
  }
  const Votes votes = {block.votes, threads};
  block.arrived = block.votes = 0;
  void* const seen = block.sync->last_arrived([] {});
  for (Thread* thread : block.threads) {
    thread->votes = votes;
    thread->seen = seen;
    make_ready(*thread);
  }
  return votes;
}

void warp_operation(const WarpOperation& operation) {
  if (!(operation.mask >> current->lane & 1)) {
    fail(cudaErrorLaunchFailure, name(operation.site) + ": the lane that calls is not in the mask");
  }
  release(&current->warp->sync->arrived);
  current->waiting_warp = &operation;
  const WarpOperation* lanes[32] = {};
  for (int lane = 0; lane < 32; ++lane) {
    if (!(operation.mask >> lane & 1)) continue;
    const Thread* thread = current->warp->lanes[lane];
    if (thread == nullptr || thread->waiting_warp == nullptr || !same(*thread->waiting_warp, operation)) {
      wait();
      acquire(current->seen);
      return;
    }
    lanes[lane] = thread->waiting_warp;
  }
  void* const seen =
      current->warp->sync->last_arrived([&] { operation.complete(lanes, operation.mask); });
  for (int lane = 0; lane < 32; ++lane) {
    if (!(operation.mask >> lane & 1)) continue;
    current->warp->lanes[lane]->seen = seen;
    make_ready(*current->warp->lanes[lane]);
  }
}

namespace {

void land(const std::vector<AsyncCopy>& copies) {
  for (const AsyncCopy& copy : copies) {
    std::memcpy(copy.shared, copy.global, copy.source_bytes);
    std::memset(static_cast<char*>(copy.shared) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
  }
}

}  // namespace

void skip_barrier(const std::string& file, int line) {
  skipped_file = file;
  skipped_barriers = {line};
}

void copy_async(void* shared, const void* global, size_t bytes, size_t source_bytes) {
  check_aligned(shared, bytes, "cp.async to shared memory");
  check_aligned(global, bytes, "cp.async from global memory");
  std::memset(shared, 0xFF, bytes);
  current->open_copies.push_back({shared, global, bytes, source_bytes});
}

void commit_async() {
  current->committed_copies.push_back(std::move(current->open_copies));
  current->open_copies.clear();
}

void wait_async(int groups_left) {
  auto& groups = current->committed_copies;
  while (groups.size() > static_cast<size_t>(groups_left)) {
    land(groups.front());
    groups.erase(groups.begin());
  }
}

}  // namespace ar_fast::emulation

// order: 0 forward, 1 reverse, 2 random (from `seed`). For the tests, which load the library with ctypes.
extern "C" __attribute__((visibility("default"))) void ar_fast_emulation_set_order(int order, uint64_t seed) {
  ar_fast::emulation::settings() = {static_cast<ar_fast::emulation::Order>(order), seed};
}

extern "C" __attribute__((visibility("default"))) void ar_fast_emulation_set_device(int capability,
                                                                                    int multiprocessors) {
  ar_fast::emulation::capability = capability;
  ar_fast::emulation::multiprocessors = multiprocessors;
}

extern "C" __attribute__((visibility("default"))) const char* ar_fast_emulation_error() {
  return ar_fast::emulation::last_error.c_str();
}

// With `on`, kernels are not run from here on, and their launches are noted instead; returns the notes so far.
extern "C" __attribute__((visibility("default"))) const char* ar_fast_emulation_record(bool on) {
  static std::string notes;
  notes.swap(ar_fast::emulation::recorded);
  ar_fast::emulation::recorded.clear();
  ar_fast::emulation::recording = on;
  return notes.c_str();
}
