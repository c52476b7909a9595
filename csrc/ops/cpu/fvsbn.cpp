// fvsbn_sample on the CPU: slices of rows on torch's threads.
#include "../fvsbn.h"

#include "../../kernels/cpu/fvsbn_cpu.h"
#include "../explain.h"
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

std::tuple<at::Tensor, at::Tensor, at::Tensor> fvsbn_sample_cpu(const FvsbnSampleArguments& a) {
  const char* op = fvsbn_name;
  const auto t = prepare_fvsbn_sample(a);
  const FvsbnSample& sample = t.sample;
  check_order_values(op, sample.order, a.variables, a.start, a.stop);
  // By place: the last position first.
  const Entries entries{a.variables - a.stop, a.variables - a.start};
  check_offset_values(op, "offsets", sample.offsets, a.variables, sample.out_rows, entries);
  check_head_values(op, sample.head, a.variables, sample.out_rows, sample.offsets, entries);
  check_input_rows(op, sample.head, a.variables, sample.out_rows, sample.offsets, sample.in_offsets, a.weight.size(0),
                   entries);
  sample.storage == ScalarType::float64 ? check_given_categories<double>(op, sample)
                                        : check_given_categories<float>(op, sample);
  if (sample.batch > 0 && a.stop > a.start) {
    int64_t most_parameters = 0;
    for (int64_t q = entries.begin; q < entries.end; ++q) {
      most_parameters = std::max(most_parameters, parameters_of(sample, q));
    }
    const int64_t slice = rows_per_slice(sample.batch);
    FvsbnLayout layout{};
    AR_FAST_CPU_KERNEL(fvsbn_layout)(sample, most_parameters, slice, &layout);
    explain(op, " on the CPU: ", isa_name(), ", values pushed past blocks of ", layout.block, " positions, ",
            sample.batch, " rows, positions ", a.start, " to ", a.stop, ", ", (sample.batch + slice - 1) / slice,
            " row groups on ", at::get_num_threads(), " threads");
    const auto kernel = AR_FAST_CPU_KERNEL(fvsbn_sample);
    in_slices(sample.batch, slice, layout.bytes, [&](int64_t begin, int64_t end, void* scratch) {
      kernel(sample, most_parameters, begin, end, scratch);
    });
  }
  return {t.values, t.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<fvsbn_sample_cpu>(m); }

}  // namespace ar_fast
