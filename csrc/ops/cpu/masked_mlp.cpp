// masked_mlp_sample on the CPU: groups of rows on torch's threads.
#include "../masked_mlp.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "../../kernels/cpu/masked_mlp_cpu.h"
#include "../explain.h"
#include "../library.h"
#include "isa.h"
#include "values.h"

namespace ar_fast {
namespace {

constexpr const char* op_name = "masked_mlp_sample";

// On the CPU values can be looked at without a synchronisation, so what would read a unit not yet computed raises, and
// what would read or write outside a tensor.
void check_schedule(const MaskedMlpSample& sample) {
  const int64_t out_rows = sample.layers[sample.hidden_layers].units;
  check_offset_values(op_name, "in_offsets", sample.in_offsets, sample.variables, sample.in_rows);
  check_offset_values(op_name, "out_offsets", sample.out_offsets, sample.variables, out_rows);
  check_head_values(op_name, sample.head, sample.variables, out_rows, sample.out_offsets, 0, nullptr, nullptr);
  for (int64_t l = 0; l <= sample.hidden_layers; ++l) {
    const MaskedMlpLayer& layer = sample.layers[l];
    const int64_t inputs = l == 0 ? sample.in_rows : sample.layers[l - 1].units;
    int32_t before = 0;
    for (int64_t u = 0; u < layer.units; ++u) {
      const int32_t here = layer.extents[u];
      TORCH_CHECK(here >= before && here <= inputs, op_name, ": extents[", l, "] must ascend within 0 ... ", inputs,
                  ", got ", here, " after ", before, " at unit ", u);
      before = here;
    }
    before = 0;
    for (int64_t p = 0; p < sample.variables; ++p) {
      const auto ready = l == 0 ? static_cast<int32_t>(masked_mlp_columns(sample, p).begin)
                                : sample.layers[l - 1].unit_ends[p];
      if (layer.unit_ends == nullptr) {
        const int64_t last = masked_mlp_parameters(sample, p).end - 1;
        TORCH_CHECK(layer.extents[last] <= ready, op_name, ": extents[", l, "][", last, "] must be at most ", ready,
                    ", the units ready at position ", p, ", got ", layer.extents[last]);
        continue;
      }
      const int32_t end = layer.unit_ends[p];
      TORCH_CHECK(end >= before && end <= layer.units, op_name, ": unit_ends[", l, "] must ascend within 0 ... ",
                  layer.units, ", got ", end, " after ", before, " at position ", p);
      TORCH_CHECK(end == 0 || layer.extents[end - 1] <= ready, op_name, ": unit_ends[", l, "][", p, "] = ", end,
                  " names a unit that sees ", layer.extents[end - 1], " inputs where ", ready, " are ready");
      before = end;
    }
  }
  check_order_values(op_name, sample.order, sample.variables);
}

// A category has a column of its own, or its variable has one column, which takes its number.
void check_categories(const MaskedMlpSample& sample) {
  if (sample.head.kind != HeadKind::categorical) return;
  for (int64_t p = 0; p < sample.variables; ++p) {
    const MaskedMlpRange columns = masked_mlp_columns(sample, p), rows = masked_mlp_parameters(sample, p);
    const int64_t own = columns.end - columns.begin, count = rows.end - rows.begin;
    TORCH_CHECK(own == 1 || own == count, op_name, ": a variable must have one column of weights[0], or one for each of ",
                count, " categories, got ", own, " at position ", p);
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_mlp_sample_cpu(
    const at::Tensor& state, at::TensorList weights, at::TensorList biases, at::TensorList extents,
    at::TensorList unit_ends, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
    std::string activation, std::string head, int64_t levels, int64_t seed, int64_t first_index, int64_t start,
    int64_t stop, double temperature, std::string algorithm) {
  check_algorithm(op_name, algorithm, {"auto", "lanes"});
  const Head parsed = parse_head(op_name, head, levels);
  check_masked_mlp_sample(state, weights, biases, extents, unit_ends, order, in_offsets, out_offsets, given, known,
                          variables, parsed, start, stop, temperature);
  const MaskedMlpTensors t =
      prepare_masked_mlp(state, weights, biases, extents, unit_ends, order, in_offsets, out_offsets, given, known,
                         variables, parse_mlp_activation(activation), parsed, seed, first_index, start, stop,
                         temperature);
  const MaskedMlpSample& sample = t.sample;
  check_schedule(sample);
  check_categories(sample);
  if (sample.batch > 0 && stop > start) {
    MaskedMlpLayout layout{};
    AR_FAST_CPU_KERNEL(masked_mlp_layout)(sample, &layout);
    // As many groups as threads while a group has a full vector; a row's result is the same in any group.
    const int64_t share = (sample.batch + at::get_num_threads() - 1) / at::get_num_threads();
    const int64_t rows = std::min(layout.most_rows, (share + layout.lanes - 1) / layout.lanes * layout.lanes);
    const int64_t groups = (sample.batch + rows - 1) / rows;
    const auto kernel = AR_FAST_CPU_KERNEL(masked_mlp_sample);
    int64_t first_group_multiply_adds = 0;
    at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      const at::Tensor scratch = at::empty({layout.bytes}, at::TensorOptions(at::kByte));
      int64_t multiply_adds = 0;
      for (int64_t group = begin; group < end; ++group) {
        kernel(sample, group * rows, std::min(sample.batch, (group + 1) * rows), scratch.mutable_data_ptr(),
               &multiply_adds);
      }
      if (begin == 0) first_group_multiply_adds = multiply_adds;
    });
    explain(op_name, " on the CPU: ", isa_name(), ", ", groups, " groups of ", rows, " rows as lanes, positions ",
            start, " to ", stop, ", ", first_group_multiply_adds, " multiply-adds per row, on ", at::get_num_threads(),
            " threads");
  }
  return {t.values, t.log_prob, t.state};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { m.impl("masked_mlp_sample", masked_mlp_sample_cpu); }

}  // namespace ar_fast
