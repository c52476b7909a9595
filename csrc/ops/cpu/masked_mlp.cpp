// masked_mlp_sample on the CPU: groups or slices of rows on torch's threads.
#include "../masked_mlp.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "../../kernels/cpu/masked_mlp_cpu.h"
#include "../explain.h"
#include "isa.h"
#include "slices.h"
#include "values.h"

namespace ar_fast {
namespace {

// At least as many as the kernel's blocks have.
constexpr int64_t most_block_positions = 16;

// How much of a value the units computed at a position can read.
int64_t ready_at(const MaskedMlpSample& sample, int64_t value, int64_t position) {
  return value == 0 ? masked_mlp_columns(sample, position).begin : masked_mlp_units(sample, value - 1, position).end;
}

// Checks the units [begin, end), which belong to the layer.
void check_ascends(const MaskedMlpSample& sample, const MaskedMlpTerm& term, int64_t index, int64_t begin,
                   int64_t end) {
  const int64_t inputs = masked_mlp_width(sample, term.source);
  int32_t before = 0;
  for (int64_t u = begin; u < end; ++u) {
    const int32_t here = term.extents[u];
    TORCH_CHECK(here >= before && here <= inputs, masked_mlp_name, ": extents[", index,
                "] must ascend within 0 ... ", inputs,
                ", got ", here, " after ", before, " at unit ", u);
    before = here;
  }
}

// On the CPU values can be read without a synchronisation, so those raise that would cause a read of a unit that is not
// computed yet, or an access outside a tensor. The entries are positions: those of the call and, since kernels continue
// within a block of positions, the earlier ones that may be in the first one's block; with a weight by input, all
// earlier ones.
void check_schedule(const MaskedMlpSample& sample, const Entries& entries) {
  const int64_t out_rows = sample.layers[sample.hidden_layers].units;
  check_order_values(masked_mlp_name, sample.draws);
  check_offset_values(masked_mlp_name, "in_offsets", sample.in_offsets, sample.draws.variables, sample.in_rows,
                      entries);
  check_offset_values(masked_mlp_name, "out_offsets", sample.out_offsets, sample.draws.variables, out_rows, entries);
  check_head_values(masked_mlp_name, sample.draws.head, sample.draws.variables, out_rows, sample.out_offsets, entries);
  if (entries.begin == entries.end || sample.by_input) return;
  // Terms are counted as in weights and extents.
  for (int64_t l = 0, term = 0; l <= sample.hidden_layers; term += sample.layers[l++].terms) {
    const MaskedMlpLayer& layer = sample.layers[l];
    const int64_t first = masked_mlp_units(sample, l, entries.begin).begin;
    int64_t before = first;
    TORCH_CHECK(first >= 0, masked_mlp_name, ": unit_ends[", l, "] must ascend within 0 ... ", layer.units, ", got ",
                first, " at position ", entries.begin - 1);
    for (int64_t p = entries.begin; l < sample.hidden_layers && p < entries.end; ++p) {
      const int64_t end = masked_mlp_units(sample, l, p).end;
      TORCH_CHECK(end >= before && end <= layer.units, masked_mlp_name, ": unit_ends[", l,
                  "] must ascend within 0 ... ", layer.units, ", got ", end, " after ", before, " at position ", p);
      before = end;
    }
    const int64_t last = masked_mlp_units(sample, l, entries.end - 1).end;
    for (int64_t t = 0; t < layer.terms; ++t) check_ascends(sample, layer.term[t], term + t, first, last);
    for (int64_t p = entries.begin; p < entries.end; ++p) {
      const int64_t end = masked_mlp_units(sample, l, p).end;
      if (end == 0) continue;
      for (int64_t t = 0; t < layer.terms; ++t) {
        const int64_t seen = layer.term[t].extents[end - 1], ready = ready_at(sample, layer.term[t].source, p);
        TORCH_CHECK(seen <= ready, masked_mlp_name, ": extents[", term + t, "][", end - 1, "] must be at most ", ready,
                    ", the inputs ready at position ", p, " where unit_ends or out_offsets compute it, got ", seen);
      }
      TORCH_CHECK(layer.add < 0 || end <= ready_at(sample, layer.add, p), masked_mlp_name, ": layer ", l,
                  " must compute at position ", p, " at most the ", ready_at(sample, layer.add, p),
                  " units that are ready of the value it adds, got ", end);
    }
  }
}

// A categorical variable has a column for each category, or one column that holds the number of its category. By input
// with a categorical head it has a column for each category.
void check_categories(const MaskedMlpSample& sample) {
  if (sample.draws.head.kind != HeadKind::categorical && sample.draws.head.kind != HeadKind::per_variable) return;
  for (int64_t p = sample.draws.start; p < sample.draws.stop; ++p) {
    const bool category = sample.draws.head_at(p).kind == HeadKind::categorical;
    const MaskedMlpRange columns = masked_mlp_columns(sample, p), rows = masked_mlp_parameters(sample, p);
    const int64_t own = columns.end - columns.begin, count = rows.end - rows.begin;
    TORCH_CHECK(own == 1 || category, masked_mlp_name,
                ": a variable that is no category must have one column of weights[0], got ", own, " at position ", p);
    const bool one_hot = sample.by_input && sample.draws.head.kind == HeadKind::categorical;
    TORCH_CHECK((own == 1 && !one_hot) || own == count, masked_mlp_name,
                ": a variable must have one column of weights[0], or one for each of ", count, " categories, got ", own,
                " at position ", p);
  }
}

// How many threads share the units of a group. This helps if there are at least twice as many threads as groups of
// rows, and a block of positions is more work than waking them.
int64_t team_parts(const MaskedMlpSample& sample, int64_t groups) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), masked_mlp_most_parts);
  int64_t weights = 0;
  for (int64_t l = 0; l <= sample.hidden_layers; ++l) {
    const MaskedMlpLayer& layer = sample.layers[l];
    for (int64_t t = 0; t < layer.terms; ++t) weights += layer.units * masked_mlp_width(sample, layer.term[t].source);
  }
  return 2 * groups <= threads && weights / sample.draws.variables > 16 * 1024 ? threads : 1;
}

// For a weight by input.
void draw_by_input(const MaskedMlpSample& sample) {
  const Draws& draws = sample.draws;
  const int64_t slice = rows_per_slice(draws.batch);
  MaskedMlpPushLayout layout{};
  AR_FAST_CPU_KERNEL(masked_mlp_push_layout)(sample, slice, &layout);
  explain(masked_mlp_name, " on the CPU: ", isa_name(), ", values pushed past blocks of ", layout.block, " positions, ",
          draws.batch, " rows, positions ", draws.start, " to ", draws.stop, ", ", (draws.batch + slice - 1) / slice,
          " row groups on ", at::get_num_threads(), " threads");
  const auto kernel = AR_FAST_CPU_KERNEL(masked_mlp_push);
  in_slices(draws.batch, slice, layout.bytes,
            [&](int64_t begin, int64_t end, void* scratch) { kernel(sample, begin, end, scratch); });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_mlp_sample_cpu(const MaskedMlpSampleArguments& a) {
  const MaskedMlpTensors t = prepare_masked_mlp(a);
  const MaskedMlpSample& sample = t.sample;
  check_schedule(sample, {a.by_input ? 0 : std::max<int64_t>(0, a.start - most_block_positions), a.stop});
  check_categories(sample);
  if (a.by_input) {
    if (sample.draws.batch > 0 && a.stop > a.start) draw_by_input(sample);
  } else if (sample.draws.batch > 0 && a.stop > a.start) {
    MaskedMlpLayout layout{};
    AR_FAST_CPU_KERNEL(masked_mlp_layout)(sample, 1, &layout);
    // As many groups as threads while a group has a full vector; a row's result is the same in any group.
    const int64_t threads = at::get_num_threads(), share = (sample.draws.batch + threads - 1) / threads;
    const int64_t rows = std::min(layout.most_rows, (share + layout.lanes - 1) / layout.lanes * layout.lanes);
    const int64_t groups = (sample.draws.batch + rows - 1) / rows;
    const MaskedMlpTeam team{team_parts(sample, groups), [](int64_t parts, auto body, void* context) {
                               at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
                                 for (int64_t part = begin; part < end; ++part) body(context, part);
                               });
                             }};
    AR_FAST_CPU_KERNEL(masked_mlp_layout)(sample, team.parts, &layout);
    const auto kernel = AR_FAST_CPU_KERNEL(masked_mlp_sample);
    int64_t first_group_multiply_adds = 0;
    const auto run = [&](int64_t begin, int64_t end) {
      const at::Tensor scratch = at::empty({layout.bytes}, at::TensorOptions(at::kByte));
      int64_t multiply_adds = 0;
      for (int64_t group = begin; group < end; ++group) {
        kernel(sample, group * rows, std::min(sample.draws.batch, (group + 1) * rows), scratch.mutable_data_ptr(), team,
               &multiply_adds);
      }
      if (begin == 0) first_group_multiply_adds = multiply_adds;
    };
    if (team.parts > 1) {
      run(0, groups);
    } else {
      at::parallel_for(0, groups, 1, run);
    }
    explain(masked_mlp_name, " on the CPU: ", isa_name(), ", ", groups, " groups of ", rows,
            " rows as lanes, units split ",
            team.parts, " ways, positions ", a.start, " to ", a.stop, ", ", first_group_multiply_adds,
            " multiply-adds per row, on ", at::get_num_threads(), " threads");
  }
  return {t.drawn.values, t.drawn.log_prob, t.state};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) { implement<masked_mlp_sample_cpu>(m); }

}  // namespace ar_fast
