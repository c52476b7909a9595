// ar_fast.compression: while a coder listens, the sampling ops of its thread code their values instead of drawing them
// (kernels/draws.h). A row of an op has a stream of its own, which goes on over many calls.
#pragma once

#include <string>
#include <vector>

#include "draws.h"

namespace ar_fast {

class Coder {
 public:
  virtual ~Coder() = default;
  // Called by an op before its kernel runs: says in t.draws what is coded.
  virtual void attach(const DrawArguments& a, int64_t variables, DrawTensors& t) = 0;
};

// That of this thread, or null.
Coder*& current_coder();

// The encoder of a stream. Source: as kernels/range_coder.h.
class RangeEncoder {
 public:
  void encode(const Interval& interval);
  // The words, the lowest byte first, without zero words at the end. Nothing can follow.
  std::string finish();

 private:
  void raise(uint64_t by);

  std::vector<uint32_t> words_;
  uint64_t lower_ = 0, range_ = ~0ull;
};

class StreamEncoder : public Coder {
 public:
  explicit StreamEncoder(int64_t streams) : streams_(streams) {}
  ~StreamEncoder() override;
  // values: (B, D) of the compute type, by variable, with at most as many rows as there are streams.
  void begin(const at::Tensor& values);
  // Raises if no op encoded, unless something else failed.
  void end(bool failed);
  void encode(int64_t stream, const at::Tensor& intervals);
  std::vector<std::string> finish();
  void attach(const DrawArguments& a, int64_t variables, DrawTensors& t) override;

 private:
  std::vector<RangeEncoder> streams_;
  std::vector<at::Tensor> intervals_;  // [B, count, 3] of each call
  at::Tensor values_;
};

class StreamDecoder : public Coder {
 public:
  explicit StreamDecoder(std::vector<std::string> streams);
  ~StreamDecoder() override;
  void begin();
  void end(bool failed);
  void attach(const DrawArguments& a, int64_t variables, DrawTensors& t) override;

 private:
  std::vector<std::string> streams_;
  std::vector<RangeDecoder> decoders_;
  int64_t calls_ = 0;
};

}  // namespace ar_fast
