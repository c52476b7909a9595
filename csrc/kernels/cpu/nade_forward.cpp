// NADE forward: the parameters, and the fused log-likelihood.
#include <algorithm>

#include "head_math.h"
#include "nade_form.h"
#include "nade_single.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

// Strips that are computed together, so that the sums are loaded and stored once for both. Without skipping only the
// activations matter, and more of them at once would not fit into the registers.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int strips_together = 2;
#else
constexpr int strips_together = 1;
#endif

// partial[k] += h w_k, lane by lane, for slots [first, last).
template <typename T, size_t N>
AR_FAST_INLINE void score(const std::array<Vec<T>, N>& h, const T* out, int64_t rows, int64_t first, int64_t last,
                          T* partial) {
  for (int64_t k = first; k < last; ++k) {
    Vec<T> sum = Vec<T>::loadu(partial + k * Vec<T>::size());
    unroll<N>([&](auto u) { sum = at::vec::fmadd(h[u], load_packed(out, k, rows, u), sum); });
    sum.store(partial + k * Vec<T>::size());
  }
}

// partial[k] += w_k / denominator for one slot.
template <typename T, size_t N>
AR_FAST_INLINE void score_quotients(const std::array<Vec<T>, N>& denominator, const T* out, int64_t rows, int64_t k,
                                    T* partial) {
  const auto w = vectors<N>([&](auto u) { return load_packed(out, k, rows, u); });
  T* const place = partial + k * Vec<T>::size();
  add_quotients<T>(w, denominator, Vec<T>::loadu(place)).store(place);
}

// Several strips of one row through a chunk. partial[k] accumulates, lane by lane, the dot product of the k-th
// parameter of the chunk; the lanes are summed once, after the last strip.
template <Form F, int Strips, typename T, Activation A>
void forward_strips(const Position<T>* positions, int64_t count, const Change<T>* change, const Change<T>* last,
                    const T* in, int64_t in_rows, const T* out, int64_t out_rows, T* state, T* partial) {
  constexpr int N = Strips * strip_vectors;
  auto a = load_vectors<N>(state);
  if constexpr (F == Form::scaled_pre_activations) {
    for (int64_t p = 0; p < count; ++p) {
      const Position<T>& position = positions[p];
      score(activate_vectors<F, A>(a, position.scale), out, out_rows, position.out_slot,
            position.out_slot + position.out_rows, partial);
      if (change != last && change->position == p) advance<F, A>(in, in_rows, *change++, a);
    }
  } else {
    int64_t scored = 0;
    const auto score_to = [&](int64_t position) __attribute__((always_inline)) {
      const int64_t end = positions[position].out_slot + positions[position].out_rows;
      // A variable without parameters needs no activations.
      if constexpr (F == Form::bounded) {
        if (end == scored + 1) {
          score_quotients(one_plus_exp2(a), out, out_rows, scored, partial);
          scored = end;
          return;
        }
      }
      if (scored < end) score(activate_vectors<F, A>(a, T(1)), out, out_rows, scored, end, partial);
      scored = end;
    };
    for (; change != last; ++change) {
      score_to(change->position);
      advance<F, A>(in, in_rows, *change, a);
    }
    score_to(count - 1);
  }
  store_vectors(a, state);
}

// The same for one strip that has only some units, and numbers that are not finite.
template <typename T, Activation A>
void forward_ragged(const Position<T>* positions, int64_t count, const Change<T>* change, const Change<T>* last,
                    const T* in, const T* out, int64_t units, T* state, T* partial) {
  constexpr Form form = Form::scaled_pre_activations;
  Strip<T> a = load_vectors(state);
  for (int64_t p = 0; p < count; ++p) {
    const Position<T>& position = positions[p];
    const Strip<T> h = activate_vectors<form, A>(a, position.scale);
    score(without_padding<T>(h, units), out, 0, position.out_slot, position.out_slot + position.out_rows, partial);
    if (change == last || change->position != p) continue;
    advance<form, A>(in, 0, *change++, a);
    a = without_padding<T>(a, units);
  }
  store_vectors(a, state);
}

// Rows that pass through a strip of a chunk one after another, so that all but the first find it in the L1 cache.
constexpr int rows_together = 4;

// Scratch of a call: for a slice of rows, for a chunk, and for each row of a group in the chunk.
template <typename T>
struct ForwardBuffers {
  T* states;         // [rows, padded]
  T* reach;          // [rows] a bound on |a| while the state is odds, infinity afterwards
  T* bound;          // [rows] a bound on |a| while it is not
  Position<T>* positions;
  PackedInput<T> in, in_odds;
  PackedRows<T> out;
  struct Row {
    Change<T>*changes, *changes_end;
    T* partial;      // [max_out_rows, vector]
    bool as_odds, bounded, finite;
  } row[rows_together];
  T* bias;           // [max_out_rows] out_bias by slot
  T* logits;
  T* targets;
  T* terms;
  T *kept, *before;  // [padded] of a single row: see SingleRow; its state before a chunk

  ForwardBuffers(const NadeModel& model, const NadeChunks& chunks, int64_t rows, Scratch& scratch)
      : states(scratch.take<T>(rows * padded_hidden<T>(model))), reach(scratch.take<T>(rows)),
        bound(scratch.take<T>(rows)), positions(scratch.take<Position<T>>(chunks.max_positions)),
        in(chunks.max_in_rows, padded_hidden<T>(model) / strip_width<T>(), scratch),
        in_odds(chunks.max_in_rows, padded_hidden<T>(model) / strip_width<T>(), scratch),
        out(chunks.max_out_rows, padded_hidden<T>(model) / strip_width<T>(), scratch) {
    for (Row& r : row) {
      r.changes = scratch.take<Change<T>>(chunks.max_positions);
      r.partial = scratch.take<T>(chunks.max_out_rows * Vec<T>::size());
    }
    bias = scratch.take<T>(chunks.max_out_rows);
    logits = scratch.take<T>(chunks.max_out_rows);
    targets = scratch.take<T>(chunks.max_positions);
    terms = scratch.take<T>(chunks.max_positions);
    kept = scratch.take<T>(padded_hidden<T>(model));
    before = scratch.take<T>(padded_hidden<T>(model));
  }
};

template <typename T>
void fill_bias(const NadeModel& model, int64_t count, ForwardBuffers<T>& b) {
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t k = 0; k < b.positions[p].out_rows; ++k) {
      b.bias[b.positions[p].out_slot + k] = static_cast<const T*>(model.out_bias)[b.positions[p].out_row + k];
    }
  }
}

// The units [begin, end) of a single row through a chunk, in the bounded form until their states leave the bound.
template <typename T, Activation A>
void forward_single(const NadeModel& model, int64_t begin, int64_t end, int64_t count, const ForwardBuffers<T>& b,
                    T* state, T* partial, bool& bounded) {
  const auto& row = b.row[0];
  if constexpr (has_bounded_form<A, T>()) {
    if (bounded) {
      std::copy_n(state, end - begin, b.before);
      SingleRow<Form::bounded, A, T> steps(model, begin, end, b.positions, state, b.kept, partial);
      steps.run(count, row.changes, row.changes_end);
      bounded = steps.reach() <= odds_limit<T>() * std::abs(state_unit<A, T>());
      if (bounded) return;
      std::copy_n(b.before, end - begin, state);
    }
  }
  SingleRow<Form::pre_activations, A, T>(model, begin, end, b.positions, state, b.kept, partial)
      .run(count, row.changes, row.changes_end);
}

// Computes a row's parameters and log-likelihoods in a chunk from its sums.
template <typename T>
double finish_row(const NadeModel& model, const NadeInput& input, const NadeForward& output, int64_t row,
                  int64_t count, int64_t parameters, ForwardBuffers<T>& b, const T* partial) {
  const Position<T>* positions = b.positions;
  horizontal_sums(partial, parameters, b.logits);
  for (int64_t k = 0; k < parameters; ++k) b.logits[k] += b.bias[k];
  if (output.parameters) {
    T* out = static_cast<T*>(output.parameters) + row * model.out_rows;
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t k = 0; k < positions[p].out_rows; ++k) {
        out[positions[p].out_row + k] = b.logits[positions[p].out_slot + k];
      }
    }
  }
  if (!output.log_prob && !output.log_prob_per_variable) return 0;
  if (input.categories) {
    const int64_t* x = input.categories + row * model.variables;
    for (int64_t p = 0; p < count; ++p) b.targets[p] = static_cast<T>(x[positions[p].variable]);
  } else {
    const T* x = static_cast<const T*>(input.x) + row * model.variables;
    for (int64_t p = 0; p < count; ++p) b.targets[p] = x[positions[p].variable];
  }
  if (output.head.kind == HeadKind::bernoulli) {
    bernoulli_log_prob(b.logits, b.targets, count, b.terms);
  } else {
    for (int64_t p = 0; p < count; ++p) {
      b.terms[p] = head_log_prob_one(output.head.of(positions[p].variable), b.logits + positions[p].out_slot,
                                     positions[p].out_rows, b.targets[p]);
    }
  }
  T* per_variable = output.log_prob_per_variable
                        ? static_cast<T*>(output.log_prob_per_variable) + row * model.variables
                        : nullptr;
  double sum = 0;
  for (int64_t p = 0; p < count; ++p) {
    sum += static_cast<double>(b.terms[p]);
    if (per_variable) per_variable[positions[p].variable] = b.terms[p];
  }
  return sum;
}

template <Activation A, typename T>
void forward_rows(const NadeModel& model, const NadeInput& input, const NadeForward& output, const NadeChunks& chunks,
                  const NadeSegment& segment, int64_t row_begin, int64_t row_end, const WeightSteps<T>& weights,
                  void* scratch_memory) {
  constexpr int64_t strip = strip_width<T>();
  constexpr Form bounded_form = has_bounded_form<A, T>() ? Form::bounded : Form::pre_activations;
  const int64_t padded = padded_hidden<T>(model), strips = padded / strip, rows = row_end - row_begin;
  Scratch scratch(scratch_memory);
  ForwardBuffers<T> b(model, chunks, rows, scratch);
  const bool keeps = keeps_odds<A>(model, input) && !segment.states;
  double* sums = segment.sums + row_begin;
  const bool single = rows <= nade_single_rows && nade_goes_single(model) && !keeps;
  bool bounded[nade_single_rows] = {true, true};

  for (int64_t r = 0; r < rows; ++r) {
    T* state = b.states + r * padded;
    if (segment.states) {
      const T* given = static_cast<const T*>(segment.states) + (row_begin + r) * padded;
      for (int64_t j = 0; j < padded; ++j) state[j] = given[j];
    } else {
      initial_state(model, row_begin + r, 0, model.hidden, padded, keeps ? T(1) : state_unit<A, T>(), state);
    }
    if (keeps) begin_odds(state, padded, state_unit<A, T>(), b.reach[r]);
    b.bound[r] = std::numeric_limits<T>::infinity();
    sums[r] = 0;
  }
  for (int64_t c = segment.chunk_begin; c < segment.chunk_end; ++c) {
    const int64_t start = chunks.starts[c], count = chunks.starts[c + 1] - start;
    const int64_t parameters = fill_positions(model, start, start + count, b.positions).out_rows;
    fill_bias(model, count, b);
    if (single) {
      for (int64_t r = 0; r < rows; ++r) {
        auto& row = b.row[0];
        row.changes_end =
            row.changes + find_changes(model, input, row_begin + r, b.positions, count, row.changes);
        forward_single<T, A>(model, 0, model.hidden, count, b, b.states + r * padded, row.partial, bounded[r]);
        sums[r] += finish_row(model, input, output, row_begin + r, count, parameters, b, row.partial);
      }
      continue;
    }
    weights.pack_out_weight(model, b.positions, count, 0, model.hidden, b.out);
    weights.begin_input(model, b.positions, 0, model.hidden, false, b.in);
    weights.begin_input(model, b.positions, 0, model.hidden, true, b.in_odds);
    for (int64_t first = 0; first < rows; first += rows_together) {
      const int64_t group = std::min<int64_t>(rows_together, rows - first);
      for (int64_t r = 0; r < group; ++r) {
        auto& row = b.row[r];
        T& reach = b.reach[first + r];
        row.changes_end =
            row.changes + find_changes(model, input, row_begin + first + r, b.positions, count, row.changes);
        std::fill_n(row.partial, parameters * Vec<T>::size(), T(0));
        T* const state = b.states + (first + r) * padded;
        row.as_odds = row.bounded = false;
        row.finite = model.hidden == padded || all_finite(model, b.positions, count, row.changes, row.changes_end);
        if (keeps && reach != std::numeric_limits<T>::infinity()) {
          b.in_odds.bring(row.changes, row.changes_end);
          row.as_odds =
              keep_odds(b.in_odds.reach(row.changes, row.changes_end), state, padded, state_unit<A, T>(), reach);
        }
        if (row.as_odds) continue;
        b.in.bring(row.changes, row.changes_end);
        if (has_bounded_form<A, T>() && !model.activation_scale) {
          row.bounded = stay_bounded(b.in.reach(row.changes, row.changes_end), state, padded, state_unit<A, T>(),
                                     b.bound[first + r]);
        }
      }
      const auto go = [&]<Form F, int Strips>(int64_t strip_index, int64_t r) {
        const auto& row = b.row[r];
        const PackedInput<T>& in = F == Form::odds ? b.in_odds : b.in;
        forward_strips<F, Strips, T, A>(b.positions, count, row.changes, row.changes_end, in.strip(strip_index),
                                        in.rows(), b.out.strip(strip_index), b.out.rows,
                                        b.states + (first + r) * padded + strip_index * strip, row.partial);
      };
      for (int64_t s = 0; s < strips;) {
        const int64_t together = std::min<int64_t>(strips_together, strips - s);
        for (int64_t r = 0; r < group; ++r) {
          if (b.row[r].as_odds && together == strips_together) {
            go.template operator()<Form::odds, strips_together>(s, r);
            continue;
          }
          for (int64_t i = s; i < s + together; ++i) {
            const int64_t units = model.hidden - i * strip;
            if (b.row[r].as_odds) {
              go.template operator()<Form::odds, 1>(i, r);
            } else if (units < strip && !b.row[r].finite) {
              forward_ragged<T, A>(b.positions, count, b.row[r].changes, b.row[r].changes_end, b.in.strip(i),
                                   b.out.strip(i), units, b.states + (first + r) * padded + i * strip,
                                   b.row[r].partial);
            } else if (b.row[r].bounded) {
              go.template operator()<bounded_form, 1>(i, r);
            } else if (model.activation_scale) {
              go.template operator()<Form::scaled_pre_activations, 1>(i, r);
            } else {
              go.template operator()<Form::pre_activations, 1>(i, r);
            }
          }
        }
        s += together;
      }
      for (int64_t r = 0; r < group; ++r) {
        sums[first + r] +=
            finish_row(model, input, output, row_begin + first + r, count, parameters, b, b.row[r].partial);
      }
    }
  }
}

template <Activation A, typename T>
void forward_units(const NadeModel& model, const NadeInput& input, const NadeChunks& chunks, int64_t row,
                   int64_t begin, int64_t end, T* sums, void* scratch_memory) {
  Scratch scratch(scratch_memory);
  ForwardBuffers<T> b(model, chunks, 1, scratch);
  initial_state(model, row, begin, end - begin, padded_hidden<T>(model), state_unit<A, T>(), b.states);
  bool bounded = true;
  for (int64_t c = 0; c < chunks.count; ++c) {
    const int64_t start = chunks.starts[c], count = chunks.starts[c + 1] - start;
    fill_positions(model, start, start + count, b.positions);
    b.row[0].changes_end =
        b.row[0].changes + find_changes(model, input, row, b.positions, count, b.row[0].changes);
    forward_single<T, A>(model, begin, end, count, b, b.states, sums, bounded);
    sums += count * Vec<T>::size();
  }
}

template <typename T>
double finish_units(const NadeModel& model, const NadeInput& input, const NadeForward& output,
                    const NadeChunks& chunks, int64_t row, const T* sums, int64_t parts, void* scratch_memory) {
  Scratch scratch(scratch_memory);
  ForwardBuffers<T> b(model, chunks, 1, scratch);
  const int64_t all = model.variables * Vec<T>::size();
  double sum = 0;
  for (int64_t c = 0; c < chunks.count; ++c) {
    const int64_t start = chunks.starts[c], count = chunks.starts[c + 1] - start;
    fill_positions(model, start, start + count, b.positions);
    fill_bias(model, count, b);
    T* const partial = b.row[0].partial;
    for (int64_t k = 0; k < count * Vec<T>::size(); k += Vec<T>::size()) {
      auto total = Vec<T>::loadu(sums + k);
      for (int64_t part = 1; part < parts; ++part) total = total + Vec<T>::loadu(sums + part * all + k);
      total.store(partial + k);
    }
    sum += finish_row(model, input, output, row, count, count, b, partial);
    sums += count * Vec<T>::size();
  }
  return sum;
}

// Computes the states of one strip of hidden units before each segment: every input is added one by one, in order, so
// that the result is the same as with a single segment.
template <typename S, typename T, Activation A>
void segment_states(const NadeModel& model, const NadeInput& input, const NadeChunks& chunks,
                    const NadeSegment* segments, int64_t count, int64_t strip_index, void* scratch_memory) {
  constexpr int64_t strip = strip_width<T>();
  const int64_t padded = padded_hidden<T>(model), h0 = strip_index * strip;
  const int64_t units = model.hidden - h0 < strip ? model.hidden - h0 : strip;
  Scratch scratch(scratch_memory);
  const auto [positions, changes] = StepBuffers<T>(chunks, scratch);
  const auto state = [&](int64_t segment, int64_t row) {
    return static_cast<T*>(segments[segment].states) + row * padded + h0;
  };
  for (int64_t row = 0; row < input.batch; ++row) {
    initial_state(model, row, h0, units, strip, state_unit<A, T>(), state(0, row));
  }
  for (int64_t s = 0; s + 1 < count; ++s) {
    for (int64_t row = 0; row < input.batch; ++row) {
      for (int64_t j = 0; j < strip; ++j) state(s + 1, row)[j] = state(s, row)[j];
    }
    for (int64_t c = segments[s].chunk_begin; c < segments[s].chunk_end; ++c) {
      const int64_t start = chunks.starts[c], length = chunks.starts[c + 1] - start;
      fill_positions(model, start, start + length, positions);
      for (int64_t row = 0; row < input.batch; ++row) {
        const int64_t found = find_changes(model, input, row, positions, length, changes);
        Strip<T> a = load_vectors(state(s + 1, row));
        add_changes<S>(model, positions, changes, changes + found, h0, units, state_unit<A, T>(), a);
        store_vectors(a, state(s + 1, row));
        clear_padding(state(s + 1, row), units);
      }
    }
  }
}

}  // namespace

void nade_forward(const NadeModel& model, const NadeInput& input, const NadeForward& output, const NadeChunks& chunks,
                  const NadeSegment& segment, int64_t row_begin, int64_t row_end, void* scratch) {
  dispatch_nade(model, [&]<typename S, typename T, Activation A>() {
    forward_rows<A>(model, input, output, chunks, segment, row_begin, row_end, weight_steps<S, T>(), scratch);
  });
}

void nade_forward_units(const NadeModel& model, const NadeInput& input, const NadeChunks& chunks, int64_t row,
                        int64_t unit_begin, int64_t unit_end, void* sums, void* scratch) {
  dispatch_nade(model, [&]<typename S, typename T, Activation A>() {
    forward_units<A>(model, input, chunks, row, unit_begin, unit_end, static_cast<T*>(sums), scratch);
  });
}

void nade_finish_units(const NadeModel& model, const NadeInput& input, const NadeForward& output,
                       const NadeChunks& chunks, int64_t row, const void* sums, int64_t parts, double* sum,
                       void* scratch) {
  dispatch_storage(model.storage, [&]<typename S, typename T>() {
    *sum = finish_units(model, input, output, chunks, row, static_cast<const T*>(sums), parts, scratch);
  });
}

void nade_segment_states(const NadeModel& model, const NadeInput& input, const NadeChunks& chunks,
                         const NadeSegment* segments, int64_t count, int64_t strip, void* scratch) {
  dispatch_nade(model, [&]<typename S, typename T, Activation A>() {
    segment_states<S, T, A>(model, input, chunks, segments, count, strip, scratch);
  });
}

void nade_layout(const NadeModel& model, const NadeChunks& chunks, int64_t batch, int64_t rows, NadeLayout* layout) {
  const auto fill = [&]<typename T>() {
    const int64_t strip = strip_width<T>(), padded = padded_hidden<T>(model);
    layout->strip = strip;
    layout->strips = padded / strip;
    layout->state_bytes = static_cast<int64_t>(sizeof(T)) * padded;
    layout->vector_bytes = sizeof(Vec<T>);
    layout->change_bytes = sizeof(Change<T>);
    Scratch steps(nullptr), scratch(nullptr);
    const StepBuffers<T> step_buffers(chunks, steps);
    layout->steps_bytes = steps.bytes_taken();
    const ForwardBuffers<T> buffers(model, chunks, rows, scratch);
    layout->forward_bytes = scratch.bytes_taken();
    layout->backward_weights_bytes = nade_backward_weights_scratch_bytes(model, chunks, batch);
    layout->backward_input_bytes = nade_backward_input_scratch_bytes(model, chunks);
    layout->sample_bytes = nade_sample_scratch_bytes(model, chunks, rows);
  };
  if (model.storage == ScalarType::float64) {
    fill.template operator()<double>();
  } else {
    fill.template operator()<float>();
  }
}

}  // namespace ar_fast::CPU_CAPABILITY
