#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define AR_FAST_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define AR_FAST_ADDRESS_SANITIZER 1
#endif
#endif

#if defined(AR_FAST_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// This file and cuda_emulation.cpp are compiled without ThreadSanitizer, whose calls they make themselves
// (CMakeLists.txt): what the scheduler does belongs to no thread of a kernel.
#if defined(AR_FAST_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

// ar_fast_switch_stack(save, load): pushes the registers that a call preserves, stores the stack pointer at *save,
// takes `load` as the stack pointer, pops the registers that were pushed there and returns to the address found there.
#if defined(__x86_64__)
extern "C" void ar_fast_switch_stack(void** save, void* load);
asm(R"(
.text
.hidden ar_fast_switch_stack
.globl ar_fast_switch_stack
.type ar_fast_switch_stack, @function
ar_fast_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ar_fast_switch_stack, .-ar_fast_switch_stack
)");
#elif defined(__aarch64__)
extern "C" void ar_fast_switch_stack(void** save, void* load);
asm(R"(
.text
.hidden ar_fast_switch_stack
.globl ar_fast_switch_stack
.type ar_fast_switch_stack, %function
ar_fast_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size ar_fast_switch_stack, .-ar_fast_switch_stack
)");
#else
static void ar_fast_switch_stack(void** save, void* load) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}
#endif

namespace ar_fast::emulation {

namespace {

#if defined(AR_FAST_ADDRESS_SANITIZER) || defined(AR_FAST_THREAD_SANITIZER)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// The fiber that the scheduler enters for the first time; its entry has no register to find its argument in.
Fiber* starting = nullptr;

}  // namespace

struct FiberEntry {
  static void enter() { Fiber::run(starting); }
};

Fiber::Fiber() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  stack_bytes_ = kStackBytes;
  void* memory = mmap(nullptr, page + stack_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);
  stack_ = static_cast<char*>(memory) + page;
}

Fiber::~Fiber() {
#if defined(AR_FAST_THREAD_SANITIZER)
  if (thread_ != nullptr) __tsan_destroy_fiber(thread_);
#endif
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  munmap(stack_ - page, page + stack_bytes_);
}

void Fiber::start(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  done_ = false;
  fiber_fake_stack_ = nullptr;
#if defined(AR_FAST_THREAD_SANITIZER)
  // A new one each time: threads of different blocks are different threads.
  if (thread_ != nullptr) __tsan_destroy_fiber(thread_);
  thread_ = __tsan_create_fiber(0);
#endif
#if defined(AR_FAST_ADDRESS_SANITIZER)
  __asan_unpoison_memory_region(stack_, stack_bytes_);
#endif
  char* top = stack_ + stack_bytes_;
#if defined(__x86_64__)
  // Six registers, the address that `ret` takes, and a null return address that leaves the stack aligned as after a
  // call.
  void** frame = reinterpret_cast<void**>(top) - 8;
  std::memset(frame, 0, 8 * sizeof(void*));
  frame[6] = reinterpret_cast<void*>(&FiberEntry::enter);
  stack_pointer_ = frame;
#elif defined(__aarch64__)
  void** frame = reinterpret_cast<void**>(top) - 20;
  std::memset(frame, 0, 20 * sizeof(void*));
  frame[11] = reinterpret_cast<void*>(&FiberEntry::enter);
  stack_pointer_ = frame;
#else
  static_assert(sizeof(ucontext_t) < kStackBytes / 4, "the context is kept at the top of the stack");
  auto* context =
      reinterpret_cast<ucontext_t*>((reinterpret_cast<uintptr_t>(top) - sizeof(ucontext_t)) & ~uintptr_t{63});
  getcontext(context);
  context->uc_stack.ss_sp = stack_;
  context->uc_stack.ss_size = static_cast<size_t>(reinterpret_cast<char*>(context) - stack_);
  context->uc_link = nullptr;
  makecontext(context, &FiberEntry::enter, 0);
  stack_pointer_ = context;
#endif
}

void Fiber::resume() {
  starting = this;
#if defined(AR_FAST_ADDRESS_SANITIZER)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack_, stack_, stack_bytes_);
#endif
#if defined(AR_FAST_THREAD_SANITIZER)
  scheduler_thread_ = __tsan_get_current_fiber();
#endif
  enter_fiber();
  ar_fast_switch_stack(&scheduler_pointer_, stack_pointer_);
#if defined(AR_FAST_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#if defined(AR_FAST_ADDRESS_SANITIZER)
  __sanitizer_start_switch_fiber(done_ ? nullptr : &fiber_fake_stack_, scheduler_stack_, scheduler_stack_bytes_);
#endif
  enter_scheduler();
  ar_fast_switch_stack(&stack_pointer_, scheduler_pointer_);
#if defined(AR_FAST_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(fiber_fake_stack_, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
}

#if defined(AR_FAST_THREAD_SANITIZER)
void Fiber::enter_fiber() { __tsan_switch_to_fiber(thread_, __tsan_switch_to_fiber_no_sync); }
void Fiber::enter_scheduler() { __tsan_switch_to_fiber(scheduler_thread_, __tsan_switch_to_fiber_no_sync); }
void release(void* point) { __tsan_release(point); }
void acquire(void* point) { __tsan_acquire(point); }
#else
void Fiber::enter_fiber() {}
void Fiber::enter_scheduler() {}
void release(void*) {}
void acquire(void*) {}
#endif

void Fiber::run(Fiber* fiber) {
#if defined(AR_FAST_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(nullptr, &fiber->scheduler_stack_, &fiber->scheduler_stack_bytes_);
#endif
  fiber->entry_(fiber->argument_);
  fiber->done_ = true;
  fiber->suspend();
  __builtin_trap();  // a finished fiber is never resumed
}

}  // namespace ar_fast::emulation
