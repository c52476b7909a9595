#include "coding.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include <utility>

namespace ar_fast {
namespace {

constexpr const char* coding_name = "compression";
static_assert(sizeof(Interval) == 3 * sizeof(int32_t));

void start_coding(Coder* coder) {
  TORCH_CHECK(current_coder() == nullptr, coding_name, ": a thread codes with one coder at a time");
  current_coder() = coder;
}

void stop_coding(Coder* coder) {
  if (current_coder() == coder) current_coder() = nullptr;
}

}  // namespace

Coder*& current_coder() {
  thread_local Coder* coder = nullptr;
  return coder;
}

// Adds to the lower end; a carry goes into the words that are written already.
void RangeEncoder::raise(uint64_t by) {
  lower_ += by;
  if (lower_ >= by) return;
  for (size_t k = words_.size(); k > 0 && ++words_[k - 1] == 0; --k) {
  }
}

void RangeEncoder::encode(const Interval& interval) {
  if (interval.precision < range_word_bits && interval.frequency == uint32_t{1} << interval.precision) return;
  const uint64_t scale = range_ >> interval.precision;
  raise(scale * interval.cumulative);
  range_ = scale * interval.frequency;
  if (range_ >= range_least) return;
  words_.push_back(static_cast<uint32_t>(lower_ >> range_word_bits));
  lower_ <<= range_word_bits;
  range_ <<= range_word_bits;
}

std::string RangeEncoder::finish() {
  if (range_ != ~0ull || !words_.empty()) {
    // The least number in the range whose lower word is zero: the range is not shorter than a word.
    raise(range_least - 1);
    words_.push_back(static_cast<uint32_t>(lower_ >> range_word_bits));
  }
  while (!words_.empty() && words_.back() == 0) words_.pop_back();
  std::string bytes;
  bytes.reserve(4 * words_.size());
  for (const uint32_t word : words_) {
    for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>(word >> (8 * i)));
  }
  words_.clear();
  lower_ = 0;
  range_ = ~0ull;
  return bytes;
}

StreamEncoder::~StreamEncoder() { stop_coding(this); }

void StreamEncoder::begin(const at::Tensor& values) {
  TORCH_CHECK(values.dim() == 2 && values.size(0) <= static_cast<int64_t>(streams_.size()), coding_name,
              ": values must have shape (B, D) with a stream for each row, got ", values.sizes(), " for ",
              streams_.size());
  values_ = values.contiguous();
  intervals_.clear();
  start_coding(this);
}

void StreamEncoder::attach(const DrawArguments& a, int64_t variables, DrawTensors& t) {
  const Draws& draws = t.draws;
  const int64_t batch = draws.batch, count = a.stop - a.start;
  // An op may have more variables than the model, which are known.
  TORCH_CHECK(values_.size(0) == batch && values_.size(1) <= variables &&
                  values_.scalar_type() == t.values.scalar_type(),
              coding_name, ": ", a.op, " must encode ", dtype_name(t.values.scalar_type()), " of shape (", batch, ", ",
              variables, "), got ", dtype_name(values_.scalar_type()), " of ", values_.sizes());
  if (values_.size(1) < variables) {
    at::Tensor wider = at::zeros({batch, variables}, values_.options());
    wider.narrow(1, 0, values_.size(1)).copy_(values_);
    values_ = wider;
  }
  t.coded = at::zeros({batch, count, 3}, at::TensorOptions(at::kInt));
  auto* const intervals = reinterpret_cast<Interval*>(t.coded.mutable_data_ptr<int32_t>());
  for (int64_t row = 0; draws.known != nullptr && row < batch; ++row) {
    for (int64_t p = a.start; p < a.stop; ++p) {
      // All of 2^0.
      if (draws.is_known(row, p)) intervals[row * count + p - a.start] = {0, 1, 0};
    }
  }
  t.draws.coding = {values_.const_data_ptr(), intervals, nullptr};
  intervals_.push_back(t.coded);
}

void StreamEncoder::end(bool failed) {
  stop_coding(this);
  const auto calls = std::exchange(intervals_, {});
  values_.reset();
  if (failed) return;
  TORCH_CHECK(!calls.empty(), coding_name, ": the model must draw with ar_fast's sampling ops");
  for (const at::Tensor& coded : calls) {
    const int64_t count = coded.size(1);
    const auto* intervals = reinterpret_cast<const Interval*>(coded.const_data_ptr<int32_t>());
    at::parallel_for(0, coded.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t k = row * count; k < (row + 1) * count; ++k) {
          TORCH_CHECK(intervals[k].frequency > 0, coding_name, ": the kernel must give every value an interval");
          streams_[row].encode(intervals[k]);
        }
      }
    });
  }
}

void StreamEncoder::encode(int64_t stream, const at::Tensor& intervals) {
  TORCH_CHECK(stream >= 0 && stream < static_cast<int64_t>(streams_.size()), coding_name, ": stream must be one of ",
              streams_.size(), ", got ", stream);
  TORCH_CHECK(intervals.dim() == 2 && intervals.size(1) == 3 && intervals.scalar_type() == at::kInt, coding_name,
              ": intervals must be int32 of shape (N, 3), got ", dtype_name(intervals.scalar_type()), " of ",
              intervals.sizes());
  const at::Tensor rows = intervals.contiguous();
  const auto* first = reinterpret_cast<const Interval*>(rows.const_data_ptr<int32_t>());
  for (int64_t k = 0; k < rows.size(0); ++k) streams_[stream].encode(first[k]);
}

std::vector<std::string> StreamEncoder::finish() {
  std::vector<std::string> finished;
  for (RangeEncoder& stream : streams_) finished.push_back(stream.finish());
  return finished;
}

StreamDecoder::StreamDecoder(std::vector<std::string> streams)
    : streams_(std::move(streams)), decoders_(streams_.size()) {
  for (size_t row = 0; row < streams_.size(); ++row) {
    TORCH_CHECK(streams_[row].size() % 4 == 0, coding_name, ": a stream must consist of words of 4 bytes, got ",
                streams_[row].size());
    decoders_[row].begin(reinterpret_cast<const uint8_t*>(streams_[row].data()),
                         static_cast<int64_t>(streams_[row].size()) / 4);
  }
}

StreamDecoder::~StreamDecoder() { stop_coding(this); }

void StreamDecoder::begin() {
  calls_ = 0;
  start_coding(this);
}

void StreamDecoder::attach(const DrawArguments& a, int64_t, DrawTensors& t) {
  TORCH_CHECK(t.draws.batch <= static_cast<int64_t>(decoders_.size()), coding_name, ": ", a.op,
              " must have a stream for each row, got ", decoders_.size(), " for ", t.draws.batch);
  t.draws.coding = {nullptr, nullptr, decoders_.data()};
  ++calls_;
}

void StreamDecoder::end(bool failed) {
  stop_coding(this);
  TORCH_CHECK(failed || calls_ > 0, coding_name, ": the model must draw with ar_fast's sampling ops");
}

}  // namespace ar_fast
