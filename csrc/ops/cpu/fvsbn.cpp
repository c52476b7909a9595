// fvsbn_sample on the CPU: slices of rows on torch's threads.
#include "../fvsbn.h"

#include "../../kernels/cpu/fvsbn_cpu.h"
#include "../explain.h"
#include "../library.h"
#include "isa.h"
#include "slices.h"
#include "values.h"

namespace ar_fast {
namespace {

int64_t parameters_of(const FvsbnSample& sample, int64_t place) {
  return sample.offsets ? sample.offsets[place + 1] - sample.offsets[place] : sample.out_rows / sample.variables;
}

template <typename T>
void check_given_categories(const char* op, const FvsbnSample& sample) {
  if (!sample.known) return;
  for (int64_t p = sample.start; p < sample.stop; ++p) {
    const int64_t place = sample.variables - 1 - p;
    if (sample.head.of(place).kind != HeadKind::categorical) continue;
    const int64_t variable = sample.order ? sample.order[p] : p, count = parameters_of(sample, place);
    for (int64_t row = 0; row < sample.batch; ++row) {
      const int64_t at = row * sample.variables + variable;
      const T given = static_cast<const T*>(sample.given)[at];
      TORCH_CHECK(!sample.known[at] || (given >= T(0) && given < static_cast<T>(count)), op,
                  ": given must lie in [0, ", count, ") for variable ", variable, ", got ", given);
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fvsbn_sample_cpu(
    const at::Tensor& state, const at::Tensor& weight, const OptionalTensor& order, const OptionalTensor& offsets,
    const OptionalTensor& in_offsets, const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
    std::string head, int64_t levels, const OptionalTensor& head_kinds, int64_t seed, int64_t first_index,
    int64_t start, int64_t stop, double temperature, std::string algorithm) {
  const char* op = "fvsbn_sample";
  const auto t = prepare_fvsbn_sample(state, weight, order, offsets, in_offsets, given, known, variables, head, levels,
                                      head_kinds, seed, first_index, start, stop, temperature, algorithm);
  const FvsbnSample& sample = t.sample;
  check_order_values(op, sample.order, variables, start, stop);
  // By place: the last position first.
  const Entries entries{variables - stop, variables - start};
  check_offset_values(op, "offsets", sample.offsets, variables, sample.out_rows, entries);
  check_head_values(op, sample.head, variables, sample.out_rows, sample.offsets, entries);
  check_input_rows(op, sample.head, variables, sample.out_rows, sample.offsets, sample.in_offsets, weight.size(0),
                   entries);
  sample.storage == ScalarType::float64 ? check_given_categories<double>(op, sample)
                                        : check_given_categories<float>(op, sample);
  if (sample.batch > 0 && stop > start) {
    int64_t most_parameters = 0;
    for (int64_t q = entries.begin; q < entries.end; ++q) {
      most_parameters = std::max(most_parameters, parameters_of(sample, q));
    }
    const int64_t slice = rows_per_slice(sample.batch);
    FvsbnLayout layout{};
    AR_FAST_CPU_KERNEL(fvsbn_layout)(sample, most_parameters, slice, &layout);
    explain(op, " on the CPU: ", isa_name(), ", values pushed past blocks of ", layout.block, " positions, ",
            sample.batch, " rows, positions ", start, " to ", stop, ", ", (sample.batch + slice - 1) / slice,
            " row groups on ", at::get_num_threads(), " threads");
    const auto kernel = AR_FAST_CPU_KERNEL(fvsbn_sample);
    in_slices(sample.batch, slice, layout.bytes, [&](int64_t begin, int64_t end, void* scratch) {
      kernel(sample, most_parameters, begin, end, scratch);
    });
  }
  return {t.values, t.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { m.impl("fvsbn_sample", fvsbn_sample_cpu); }

}  // namespace ar_fast
