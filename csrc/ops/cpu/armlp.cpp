// armlp_sample on the CPU: slices of rows on torch's threads.
#include "../armlp.h"

#include "../../kernels/cpu/armlp_cpu.h"
#include "../explain.h"
#include "isa.h"
#include "slices.h"
#include "values.h"

namespace ar_fast {
namespace {

int64_t first_parameter(const ArmlpSample& sample, int64_t position) {
  return sample.offsets ? sample.offsets[position] : position * (sample.out_rows / sample.draws.variables);
}

// On the CPU values can be read without a synchronisation, so any that would cause a read outside a tensor raises.
void check_block_starts(const ArmlpSample& sample, int64_t rows) {
  const bool gathers = sample.draws.head.kind == HeadKind::categorical;
  const int64_t* starts = sample.block_starts;
  const int64_t blocks = (sample.draws.variables + armlp_block - 1) / armlp_block;
  TORCH_CHECK(starts[0] == 0, armlp_name, ": block_starts must be 0 at block 0, got ", starts[0]);
  TORCH_CHECK(starts[blocks] == rows, armlp_name, ": in_weight must have the rows that block_starts ends with for ",
              sample.draws.variables, " networks, ", starts[blocks], ", got ", rows);
  for (int64_t block = sample.draws.start / armlp_block; block * armlp_block < sample.draws.stop; ++block) {
    const int64_t begin = block * armlp_block, end = std::min(begin + armlp_block, sample.draws.variables);
    const int64_t rows_before = sample.in_offsets ? sample.in_offsets[end - 1]
                                : gathers         ? first_parameter(sample, end - 1)
                                                  : end - 1;
    const int64_t expected = starts[block] + rows_before * (end - begin);
    TORCH_CHECK(starts[block] >= 0 && starts[block + 1] == expected && expected <= rows, armlp_name,
                ": block_starts must be ", expected, " at block ", block + 1, ", got ", starts[block + 1], " after ",
                starts[block], " and ", rows, " rows of in_weight");
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> armlp_sample_cpu(const ArmlpSampleArguments& a) {
  const auto t = prepare_armlp_sample(a);
  const ArmlpSample& sample = t.sample;
  check_order_values(armlp_name, sample.draws);
  // Every network reads the inputs of all earlier positions, and its block has rows for all that its last network sees.
  const Entries entries{0, a.stop == a.start ? a.start
                                             : std::min((a.stop - 1) / armlp_block * armlp_block + armlp_block,
                                                        sample.draws.variables)};
  check_offset_values(armlp_name, "offsets", sample.offsets, sample.draws.variables, sample.out_rows, entries);
  check_head_values(armlp_name, sample.draws.head, sample.draws.variables, sample.out_rows, sample.offsets, entries);
  if (sample.in_offsets) {
    check_input_rows(armlp_name, sample.draws.head, sample.draws.variables, sample.out_rows, sample.offsets,
                     sample.in_offsets, sample.in_offsets[sample.draws.variables], entries);
  }
  check_block_starts(sample, a.in_weight.size(0));
  if (sample.draws.batch > 0 && a.stop > a.start) {
    int64_t most_parameters = 0;
    for (int64_t p = a.start; p < a.stop; ++p) {
      most_parameters = std::max(most_parameters, first_parameter(sample, p + 1) - first_parameter(sample, p));
    }
    const int64_t slice = rows_per_slice(sample.draws.batch);
    int64_t bytes = 0;
    AR_FAST_CPU_KERNEL(armlp_scratch)(sample, most_parameters, slice, &bytes);
    explain(armlp_name, " on the CPU: ", isa_name(), ", non-zero inputs gathered, ", sample.draws.batch,
            " rows, positions ", a.start, " to ", a.stop, ", ", (sample.draws.batch + slice - 1) / slice,
            " row groups on ", at::get_num_threads(), " threads");
    const auto kernel = AR_FAST_CPU_KERNEL(armlp_sample);
    in_slices(sample.draws.batch, slice, bytes, [&](int64_t begin, int64_t end, void* scratch) {
      kernel(sample, most_parameters, begin, end, scratch);
    });
  }
  return {t.drawn.values, t.drawn.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<armlp_sample_cpu>(m); }

}  // namespace ar_fast
