// NADE on the CPU: cuts the work into slices, gives each its scratch, and runs them on torch's threads.
#include "../nade.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../../kernels/cpu/nade_cpu.h"
#include "../explain.h"
#include "isa.h"
#include "slices.h"
#include "values.h"

namespace ar_fast {
namespace {

// Rows of a weight in one chunk: with H = 512 in float, 32 rows of both weights are 128 KiB.
constexpr int64_t rows_per_chunk = 32;

int64_t rows_of(const int64_t* offsets, int64_t rows, int64_t variables, int64_t i) {
  return offsets ? offsets[i + 1] - offsets[i] : rows / variables;
}

struct Chunks {
  std::vector<int64_t> starts{0};
  NadeChunks view{};
};

// Positions start ... stop - 1 in chunks of at most `most_rows` rows of a weight.
Chunks cut(const NadeModel& model, int64_t most_rows, int64_t start, int64_t stop) {
  Chunks chunks;
  chunks.starts[0] = start;
  int64_t in_rows = 0, out_rows = 0, positions = 0;
  const auto close = [&](int64_t position) {
    chunks.starts.push_back(position);
    chunks.view.max_positions = std::max(chunks.view.max_positions, positions);
    chunks.view.max_in_rows = std::max(chunks.view.max_in_rows, in_rows);
    chunks.view.max_out_rows = std::max(chunks.view.max_out_rows, out_rows);
    in_rows = out_rows = positions = 0;
  };
  for (int64_t p = start; p < stop; ++p) {
    const int64_t variable = model.order ? model.order[p] : p;
    const int64_t in = rows_of(model.in_offsets, model.in_rows, model.variables, variable);
    const int64_t out = rows_of(model.out_offsets, model.out_rows, model.variables, variable);
    if (positions > 0 && std::max({in_rows + in, out_rows + out, positions + 1}) > most_rows) close(p);
    in_rows += in;
    out_rows += out;
    ++positions;
  }
  close(stop);
  chunks.view.starts = chunks.starts.data();
  chunks.view.count = static_cast<int64_t>(chunks.starts.size()) - 1;
  return chunks;
}

// The variables at positions [start, stop).
Entries check_structure(const char* op, const NadeModel& m, int64_t start, int64_t stop, int64_t fewest_out_rows) {
  check_order_values(op, m.order, m.variables, start, stop);
  const Entries entries{start, stop, m.order};
  check_offset_values(op, "in_offsets", m.in_offsets, m.variables, m.in_rows, entries);
  check_offset_values(op, "out_offsets", m.out_offsets, m.variables, m.out_rows, entries, fewest_out_rows);
  return entries;
}

void check_structure(const char* op, const NadeTensors& t, int64_t fewest_out_rows = 0) {
  check_structure(op, t.model, 0, t.model.variables, fewest_out_rows);
}

// Where a category is gathered and predicted, a variable has as many categories on both sides; or, where it is drawn,
// at least as many to gather. With a per_variable head it gathers where it has several rows.
void check_gathered_categories(const char* op, const NadeModel& m, const Head& head, bool drawn,
                               const Entries& entries) {
  if (m.in_offsets == nullptr && m.in_rows == m.variables) return;
  for (int64_t k = entries.begin; k < entries.end; ++k) {
    const int64_t i = entries[k];
    const int64_t in = rows_of(m.in_offsets, m.in_rows, m.variables, i);
    const int64_t out = rows_of(m.out_offsets, m.out_rows, m.variables, i);
    const bool scales = head.kind == HeadKind::per_variable && in == 1;
    TORCH_CHECK(head.of(i).kind != HeadKind::categorical || scales || (drawn ? in >= out : in == out), op,
                ": in_weight and out_weight must have as many rows for a categorical variable, got ", in, " and ", out,
                " for variable ", i);
  }
}

// What is drawn has parameters, and a row of in_weight where it gathers one.
void check_drawn(const char* op, const NadeSampleTensors& t) {
  const NadeModel& m = t.model;
  const auto variable_at = [&](int64_t position) { return m.order ? m.order[position] : position; };
  const bool may_lack = m.out_offsets != nullptr || m.out_rows < m.variables;
  for (int64_t p = t.sample.draws.start; may_lack && p < t.sample.draws.stop; ++p) {
    const int64_t i = variable_at(p);
    if (rows_of(m.out_offsets, m.out_rows, m.variables, i) > 0) continue;
    for (int64_t row = 0; row < t.sample.draws.batch; ++row) {
      TORCH_CHECK(t.sample.draws.is_known(row, p), op,
                  ": a variable without rows of out_weight must be known, got variable ", i, " unknown in row ", row);
    }
  }
  if (!t.sample.gathers && m.in_offsets == nullptr && m.in_rows == m.variables) return;
  const auto gathers = [&](int64_t i) {
    return t.sample.gathers || rows_of(m.in_offsets, m.in_rows, m.variables, i) > 1;
  };
  for (int64_t p = t.sample.draws.start; p < t.sample.draws.stop; ++p) {
    const int64_t i = variable_at(p), count = rows_of(m.in_offsets, m.in_rows, m.variables, i);
    const HeadKind kind = t.sample.draws.head_at(p).kind;
    TORCH_CHECK(!gathers(i) || kind == HeadKind::bernoulli || kind == HeadKind::categorical, op,
                ": in_weight must have one row for a variable of a mixture head, got ", count, " for variable ", i);
    TORCH_CHECK(!gathers(i) || kind != HeadKind::bernoulli || count >= 2, op,
                ": in_weight must have 2 rows for a bernoulli variable that gathers one, got ", count, " for variable ",
                i);
  }
}

NadeLayout layout_of(const NadeModel& model, const NadeChunks& chunks, int64_t batch, int64_t rows) {
  NadeLayout layout{};
  AR_FAST_CPU_KERNEL(nade_layout)(model, chunks, batch, rows, &layout);
  return layout;
}

void explain_nade(const char* kernel, const NadeModel& model, const NadeChunks& chunks, const NadeLayout& layout,
                  const char* slices, int64_t count, bool odds) {
  explain("nade on the CPU: kernel ", kernel, ", ", isa_name(), ", states as ", odds ? "odds" : "pre-activations", ", ",
          chunks.count, " chunks of at most ", chunks.max_positions, " positions, ", layout.strips, " strips of ",
          layout.strip, " hidden units (H = ", model.hidden, "), ", count, " ", slices, " on ", at::get_num_threads(),
          " threads");
}

// Fewer rows than threads: the variables are shared out too, in segments that start from states found beforehand.
int64_t segments_for(const NadeModel& model, int64_t batch, int64_t slice, int64_t chunks) {
  const int64_t threads = at::get_num_threads(), slices = (batch + slice - 1) / slice;
  const int64_t turns = (slices + threads - 1) / threads;
  const bool well_shared = 5 * batch >= 4 * turns * threads * slice;
  return well_shared ? 1 : std::min(chunks, 4 * threads);
}

template <typename T>
void store_log_prob(const std::vector<double>& sums, int64_t batch, void* log_prob) {
  for (int64_t row = 0; row < batch; ++row) {
    double sum = 0;
    for (size_t i = row; i < sums.size(); i += batch) sum += sums[i];
    static_cast<T*>(log_prob)[row] = static_cast<T>(sum);
  }
}

// Inputs that are not zero, or -1 if one of them is not 1 either.
template <typename T>
int64_t count_ones(const T* x, int64_t rows, int64_t variables) {
  int64_t ones = 0;
  for (int64_t row = 0; row < rows; ++row, x += variables) {
    int64_t others = 0;
    for (int64_t i = 0; i < variables; ++i) {
      ones += x[i] == T(1);
      others += x[i] != T(0) && x[i] != T(1);
    }
    if (others) return -1;
  }
  return ones;
}

// The categories, each of which adds a row; -1 if one is none and adds NaN.
int64_t count_categories(const NadeModel& m, const NadeInput& input) {
  for (int64_t i = 0; i < m.variables; ++i) {
    const int64_t rows = rows_of(m.in_offsets, m.in_rows, m.variables, i);
    for (int64_t row = 0; row < input.batch; ++row) {
      if (!is_category(input.categories[row * m.variables + i], rows)) return -1;
    }
  }
  return input.batch * m.variables;
}

// Whether to keep the states as odds (kernels/cpu/nade_odds.h), where the exponentials of in_weight are found `times`
// times: each costs about as much as two of the activations' that they save.
bool odds_pay(const NadeTensors& t, int64_t times) {
  const NadeModel& m = t.model;
  if (m.activation != Activation::sigmoid || m.activation_scale) return false;
  const int64_t batch = t.input.batch;
  const int64_t ones = t.input.categories ? count_categories(m, t.input)
                       : m.storage == ScalarType::float64
                           ? count_ones(static_cast<const double*>(t.input.x), batch, m.variables)
                           : count_ones(static_cast<const float*>(t.input.x), batch, m.variables);
  return ones >= 2 * times * m.in_rows;
}

// Few rows of a model that goes straight through its weights: the hidden units are shared out.
void run_units(const NadeTensors& t, const NadeForward& output, const Chunks& chunks, int64_t most_parts,
               std::vector<double>& sums) {
  const int64_t batch = t.input.batch;
  const NadeLayout layout = layout_of(t.model, chunks.view, batch, 1);
  const int64_t parts = std::min(most_parts, layout.strips);
  explain_nade("nade_forward", t.model, chunks.view, layout, "parts of the units", parts, false);
  const int64_t part_bytes = t.model.variables * layout.vector_bytes;
  const at::Tensor memory = at::empty({batch * parts * part_bytes}, at::kByte);
  uint8_t* const lanes = memory.mutable_data_ptr<uint8_t>();
  const auto kernel = AR_FAST_CPU_KERNEL(nade_forward_units);
  in_slices(batch * parts, 1, layout.forward_bytes, [&](int64_t task, int64_t, void* scratch) {
    const int64_t part = task % parts;
    const auto unit = [&](int64_t part) {
      return std::min(layout.strips * part / parts * layout.strip, t.model.hidden);
    };
    kernel(t.model, t.input, chunks.view, task / parts, unit(part), unit(part + 1), lanes + task * part_bytes, scratch);
  });
  const auto finish = AR_FAST_CPU_KERNEL(nade_finish_units);
  in_slices(batch, batch, layout.forward_bytes, [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t row = begin; row < end; ++row) {
      finish(t.model, t.input, output, chunks.view, row, lanes + row * parts * part_bytes, parts, &sums[row], scratch);
    }
  });
}

void run_forward(const NadeTensors& t, const NadeForward& output) {
  const int64_t batch = t.input.batch;
  if (batch == 0) return;
  const Chunks chunks = cut(t.model, rows_per_chunk, 0, t.model.variables);
  const auto store = [&](const std::vector<double>& sums) {
    if (!output.log_prob) return;
    if (t.model.storage == ScalarType::float64) {
      store_log_prob<double>(sums, batch, output.log_prob);
    } else {
      store_log_prob<float>(sums, batch, output.log_prob);
    }
  };
  const int64_t most_parts = at::get_num_threads() / batch;
  if (most_parts > 1 && nade_goes_single(t.model)) {
    std::vector<double> sums(batch);
    run_units(t, output, chunks, most_parts, sums);
    return store(sums);
  }
  const int64_t slice = rows_per_slice(batch), slices = (batch + slice - 1) / slice;
  const int64_t count = segments_for(t.model, batch, slice, chunks.view.count);
  NadeInput input = t.input;
  input.odds = count == 1 && odds_pay(t, slices);
  const NadeLayout layout = layout_of(t.model, chunks.view, batch, slice);
  explain_nade("nade_forward", t.model, chunks.view, layout, count > 1 ? "segments" : "row groups",
               count > 1 ? count : slices, input.odds);

  std::vector<double> sums(count * batch);
  const at::Tensor states = count > 1 ? at::empty({count * batch * layout.state_bytes}, at::kByte) : at::Tensor();
  std::vector<NadeSegment> segments(count);
  for (int64_t s = 0; s < count; ++s) {
    segments[s] = {chunks.view.count * s / count, chunks.view.count * (s + 1) / count,
                   count > 1 ? states.mutable_data_ptr<uint8_t>() + s * batch * layout.state_bytes : nullptr,
                   sums.data() + s * batch};
  }
  if (count > 1) {
    const auto states_kernel = AR_FAST_CPU_KERNEL(nade_segment_states);
    in_slices(layout.strips, 1, layout.steps_bytes, [&](int64_t begin, int64_t end, void* scratch) {
      for (int64_t strip = begin; strip < end; ++strip) {
        states_kernel(t.model, input, chunks.view, segments.data(), count, strip, scratch);
      }
    });
  }
  const auto kernel = AR_FAST_CPU_KERNEL(nade_forward);
  in_slices(count * slices, 1, layout.forward_bytes, [&](int64_t task, int64_t, void* scratch) {
    const int64_t begin = task % slices * slice, end = std::min(batch, begin + slice);
    kernel(t.model, input, output, chunks.view, segments[task / slices], begin, end, scratch);
  });
  store(sums);
}

at::Tensor nade_cpu(const NadeArguments& a) {
  const auto t = prepare_nade_forward(a);
  check_structure("nade", t);
  run_forward(t, t.output);
  return t.parameters;
}

std::tuple<at::Tensor, at::Tensor> nade_log_prob_forward_cpu(const NadeLogProbForwardArguments& a) {
  const char* op = NadeLogProbArguments::op;
  const auto t = prepare_nade_log_prob(a);
  check_structure(op, t, 1);
  const NadeModel& m = t.model;
  const Entries all{0, m.variables};
  check_head_values(op, t.output.head, m.variables, m.out_rows, m.out_offsets, all);
  check_gathered_categories(op, m, t.output.head, false, all);
  run_forward(t, t.output);
  return {t.log_prob, t.parameters};
}

NadeBackwardArguments::Result nade_backward_cpu(const NadeBackwardArguments& a) {
  const auto t = prepare_nade_backward(a);
  check_structure("nade_backward", t);
  const int64_t batch = t.input.batch;
  // About sqrt(D) checkpoints balance their memory against that of one chunk.
  const auto root = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(t.model.variables))));
  const Chunks chunks = cut(t.model, std::clamp<int64_t>(root, 16, 256), 0, t.model.variables);
  const NadeLayout layout = layout_of(t.model, chunks.view, batch, 1);
  NadeInput input = t.input;
  // Once for the checkpoints and once for the sweep.
  input.odds = odds_pay(t, 2);
  explain_nade("nade_backward_weights", t.model, chunks.view, layout, "strips", layout.strips, input.odds);
  const at::Tensor found = at::empty({batch * t.model.variables * layout.change_bytes}, at::kByte);
  std::vector<int64_t> begins(batch * (chunks.view.count + 1));
  const NadeChanges changes{found.mutable_data_ptr(), begins.data()};
  const auto find = AR_FAST_CPU_KERNEL(nade_changes);
  in_slices(batch, rows_per_slice(batch), layout.steps_bytes, [&](int64_t begin, int64_t end, void* scratch) {
    find(t.model, t.input, chunks.view, changes, begin, end, scratch);
  });
  const auto weights = AR_FAST_CPU_KERNEL(nade_backward_weights);
  in_slices(layout.strips, 1, layout.backward_weights_bytes, [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t strip = begin; strip < end; ++strip) {
      weights(t.model, input, t.output, chunks.view, changes, strip, scratch);
    }
  });
  if ((a.needs_x || a.needs_activation_scale) && batch > 0) {
    const auto rows = AR_FAST_CPU_KERNEL(nade_backward_input);
    in_slices(batch, 1, layout.backward_input_bytes, [&](int64_t begin, int64_t end, void* scratch) {
      rows(t.model, t.input, t.output, chunks.view, begin, end, scratch);
    });
  }
  return t.result();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> nade_sample_cpu(const NadeSampleArguments& a) {
  const char* op = NadeSampleArguments::op;
  const auto t = prepare_nade_sample(a);
  const Entries drawn =
      check_structure(op, t.model, a.start, a.stop, t.sample.draws.head.kind == HeadKind::bernoulli ? 1 : 0);
  check_head_values(op, t.sample.draws.head, a.variables, t.model.out_rows, t.model.out_offsets, drawn);
  check_gathered_categories(op, t.model, t.sample.draws.head, true, drawn);
  check_drawn(op, t);
  const int64_t batch = t.sample.draws.batch;
  if (batch > 0 && a.stop > a.start) {
    const Chunks chunks = cut(t.model, rows_per_chunk, a.start, a.stop);
    const int64_t slice = rows_per_slice(batch);
    const NadeLayout layout = layout_of(t.model, chunks.view, batch, slice);
    explain("nade_sample on the CPU: ", isa_name(), ", ", batch, " rows, positions ", a.start, " to ", a.stop, " in ",
            chunks.view.count, " chunks of at most ", chunks.view.max_positions, ", ", (batch + slice - 1) / slice,
            " row groups on ", at::get_num_threads(), " threads");
    const auto kernel = AR_FAST_CPU_KERNEL(nade_sample);
    in_slices(batch, slice, layout.sample_bytes, [&](int64_t begin, int64_t end, void* scratch) {
      kernel(t.model, t.sample, chunks.view, begin, end, scratch);
    });
  }
  return {t.drawn.values, t.drawn.log_prob, t.next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) {
  implement<nade_cpu>(m);
  implement<nade_log_prob_forward_cpu>(m);
  implement<nade_backward_cpu>(m);
  implement<nade_sample_cpu>(m);
}

}  // namespace ar_fast
