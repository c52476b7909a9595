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
  return sample.offsets ? sample.offsets[place + 1] - sample.offsets[place] : sample.out_rows / sample.draws.variables;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fvsbn_sample_cpu(const FvsbnSampleArguments& a) {
  const char* op = fvsbn_name;
  const auto t = prepare_fvsbn_sample(a);
  const FvsbnSample& sample = t.sample;
  check_order_values(op, sample.draws);
  // By place: the last position first.
  const Entries entries{a.variables - a.stop, a.variables - a.start};
  Head head = sample.draws.head;
  if (head.kinds) head.kinds = t.drawn.head_kinds.const_data_ptr<int64_t>();
  check_offset_values(op, "offsets", sample.offsets, a.variables, sample.out_rows, entries);
  check_head_values(op, head, a.variables, sample.out_rows, sample.offsets, entries);
  check_input_rows(op, head, a.variables, sample.out_rows, sample.offsets, sample.in_offsets, a.weight.size(0),
                   entries);
  check_given_categories(op, sample.draws, sample.storage, [&](int64_t p) {
    const bool category = sample.draws.head_at(p).kind == HeadKind::categorical;
    return category ? parameters_of(sample, a.variables - 1 - p) : 0;
  });
  if (sample.draws.batch > 0 && a.stop > a.start) {
    int64_t most_parameters = 0;
    for (int64_t q = entries.begin; q < entries.end; ++q) {
      most_parameters = std::max(most_parameters, parameters_of(sample, q));
    }
    const int64_t slice = rows_per_slice(sample.draws.batch);
    FvsbnLayout layout{};
    AR_FAST_CPU_KERNEL(fvsbn_layout)(sample, most_parameters, slice, &layout);
    explain(op, " on the CPU: ", isa_name(), ", values pushed past blocks of ", layout.block, " positions, ",
            sample.draws.batch, " rows, positions ", a.start, " to ", a.stop, ", ",
            (sample.draws.batch + slice - 1) / slice, " row groups on ", at::get_num_threads(), " threads");
    const auto kernel = AR_FAST_CPU_KERNEL(fvsbn_sample);
    in_slices(sample.draws.batch, slice, layout.bytes, [&](int64_t begin, int64_t end, void* scratch) {
      kernel(sample, most_parameters, begin, end, scratch);
    });
  }
  return {t.drawn.values, t.drawn.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<fvsbn_sample_cpu>(m); }

}  // namespace ar_fast
