// A fiber: a function that runs on a stack of its own and can be left in the middle and resumed. The emulation of CUDA
// runs every thread of a block as one. Scheduler and fibers share one operating-system thread.
#pragma once

#include <cstddef>

namespace ar_fast::emulation {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Prepares `entry(argument)` to run at the next resume. What ran before is abandoned, its destructors do not run.
  void start(void (*entry)(void*), void* argument);
  // Called by the scheduler: runs the fiber until it suspends or its entry returns.
  void resume();
  // Called on the fiber: goes back to the scheduler, and returns when it is resumed.
  void suspend();
  bool done() const { return done_; }
  // Called on the fiber: runs body() as the scheduler's for ThreadSanitizer, of no thread of the kernel.
  template <typename Body>
  void as_scheduler(const Body& body) {
    enter_scheduler();
    body();
    enter_fiber();
  }

 private:
  static void run(Fiber* fiber);
  // Tells ThreadSanitizer that the scheduler, or this fiber, runs from here on, without ordering anything.
  void enter_fiber();
  void enter_scheduler();

  char* stack_ = nullptr;  // above one guard page
  size_t stack_bytes_ = 0;
  void* stack_pointer_ = nullptr;  // of the suspended fiber; where ucontext is used, its context
  void* scheduler_pointer_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool done_ = true;
  // What ThreadSanitizer knows the fiber and the scheduler by.
  void* thread_ = nullptr;
  void* scheduler_thread_ = nullptr;
  // What AddressSanitizer is told at every switch.
  void* fiber_fake_stack_ = nullptr;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;

  friend struct FiberEntry;
};

// For ThreadSanitizer, nothing elsewhere: what was done before release(point) comes before what is done after
// acquire(point).
void release(void* point);
void acquire(void* point);

}  // namespace ar_fast::emulation
