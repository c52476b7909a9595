// The memory that a CPU kernel works in.
#pragma once

#include <cstdint>

namespace ar_fast::CPU_CAPABILITY {

// Splits a caller's scratch into aligned arrays. With a null base it only counts bytes.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    T* here = base_ ? reinterpret_cast<T*>(base_ + taken_) : nullptr;
    taken_ += bytes<T>(count);
    return here;
  }
  int64_t bytes_taken() const { return taken_; }
  template <typename T>
  static int64_t bytes(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

 private:
  char* base_;
  int64_t taken_ = 0;
};

}  // namespace ar_fast::CPU_CAPABILITY
