// NADE forward: parameters, and the fused log-likelihood.
#include "head_math.h"
#include "nade_strip.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

// One strip of one row through a chunk. partial[k] gathers, lane by lane, the dot product of the k-th parameter of the
// chunk; the lanes are summed once, after the last strip.
template <bool Ragged, bool Scaled, typename S, typename T, Activation A>
void forward_strip(const NadeModel& model, const Position<T>* positions, const Addend<T>* addends, int64_t count,
                   int64_t h0, int64_t units, T* state, T* partial) {
  constexpr int64_t width = Vec<T>::size();
  const S* in_weight = static_cast<const S*>(model.in_weight) + h0;
  const S* out_weight = static_cast<const S*>(model.out_weight) + h0;
  Vec<T> a[strip_vectors], h[strip_vectors], w[strip_vectors];
  load_state(state, a);
  bool changed = true;
  for (int64_t p = 0; p < count; ++p) {
    const Position<T>& position = positions[p];
    if (changed || Scaled) activate_strip<A, Scaled>(a, position.scale, h);
    for (int64_t k = 0; k < position.out_rows; ++k) {
      load_strip<Ragged, T>(out_weight + (position.out_row + k) * model.hidden, units, w);
      Vec<T> sum = Vec<T>::loadu(partial);
      for (int u = 0; u < strip_vectors; ++u) sum = at::vec::fmadd(h[u], w[u], sum);
      sum.store(partial);
      partial += width;
    }
    changed = addends[p].category >= 0;
    if (changed) {
      add_row<Ragged>(in_weight + (position.in_row + addends[p].category) * model.hidden,
                      state_unit<A, T>() * addends[p].x, units, a);
    }
  }
  store_state(a, state);
}

template <typename S, typename T, Activation A>
void forward_rows(const NadeModel& model, const NadeInput& input, const NadeForward& output, const NadeChunks& chunks,
                  const NadeSegment& segment, int64_t row_begin, int64_t row_end, void* scratch_memory) {
  constexpr int64_t strip = strip_width<T>();
  constexpr int64_t width = Vec<T>::size();
  const int64_t padded = padded_hidden<T>(model), rows = row_end - row_begin;
  Scratch scratch(scratch_memory);
  T* states = scratch.take<T>(rows * padded);
  T* partial = scratch.take<T>(chunks.max_out_rows * width);
  auto* positions = scratch.take<Position<T>>(chunks.max_positions);
  auto* addends = scratch.take<Addend<T>>(chunks.max_positions);
  T* logits = scratch.take<T>(chunks.max_out_rows);
  T* targets = scratch.take<T>(chunks.max_positions);
  T* terms = scratch.take<T>(chunks.max_positions);
  double* sums = segment.sums + row_begin;

  const T* bias = static_cast<const T*>(model.out_bias);
  for (int64_t r = 0; r < rows; ++r) {
    T* state = states + r * padded;
    if (segment.states) {
      const T* given = static_cast<const T*>(segment.states) + (row_begin + r) * padded;
      for (int64_t j = 0; j < padded; ++j) state[j] = given[j];
    } else {
      initial_state(model, row_begin + r, 0, model.hidden, padded, state_unit<A, T>(), state);
    }
    sums[r] = 0;
  }
  for (int64_t c = segment.chunk_begin; c < segment.chunk_end; ++c) {
    const int64_t start = chunks.starts[c], count = chunks.starts[c + 1] - start;
    const int64_t parameters = fill_positions(model, start, start + count, positions).out_rows;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = row_begin + r;
      fill_addends(model, input, row, positions, count, addends);
      for (int64_t k = 0; k < parameters * width; ++k) partial[k] = T(0);
      for (int64_t h0 = 0; h0 < model.hidden; h0 += strip) {
        T* state = states + r * padded + h0;
        const int64_t units = h0 + strip <= model.hidden ? strip : model.hidden - h0;
        const bool ragged = units < strip;
        const auto kernel = model.activation_scale
                                ? (ragged ? forward_strip<true, true, S, T, A> : forward_strip<false, true, S, T, A>)
                                : (ragged ? forward_strip<true, false, S, T, A> : forward_strip<false, false, S, T, A>);
        kernel(model, positions, addends, count, h0, units, state, partial);
      }
      T* out = output.parameters ? static_cast<T*>(output.parameters) + row * model.out_rows : nullptr;
      int64_t index = 0;
      for (int64_t p = 0; p < count; ++p) {
        targets[p] = input.categories ? static_cast<T>(addends[p].category) : addends[p].x;
        for (int64_t k = 0; k < positions[p].out_rows; ++k, ++index) {
          const int64_t out_row = positions[p].out_row + k;
          logits[index] = bias[out_row] + horizontal_sum(Vec<T>::loadu(partial + index * width));
          if (out) out[out_row] = logits[index];
        }
      }
      if (!output.log_prob && !output.log_prob_per_variable) continue;
      if (output.head.kind == HeadKind::bernoulli) {
        bernoulli_log_prob(logits, targets, count, terms);
      } else {
        const T* parameter = logits;
        for (int64_t p = 0; p < count; parameter += positions[p++].out_rows) {
          terms[p] = head_log_prob_one(output.head, parameter, positions[p].out_rows, targets[p]);
        }
      }
      T* per_variable = output.log_prob_per_variable
                            ? static_cast<T*>(output.log_prob_per_variable) + row * model.variables
                            : nullptr;
      double sum = 0;
      for (int64_t p = 0; p < count; ++p) {
        sum += static_cast<double>(terms[p]);
        if (per_variable) per_variable[positions[p].variable] = terms[p];
      }
      sums[r] += sum;
    }
  }
}

// The states of one strip of hidden units before each segment: every input added one by one, in order, so that the
// result is that of a single segment.
template <typename S, typename T, Activation A>
void segment_states(const NadeModel& model, const NadeInput& input, const NadeChunks& chunks,
                    const NadeSegment* segments, int64_t count, int64_t strip_index, void* scratch_memory) {
  constexpr int64_t strip = strip_width<T>();
  const int64_t padded = padded_hidden<T>(model), h0 = strip_index * strip;
  const int64_t units = model.hidden - h0 < strip ? model.hidden - h0 : strip;
  Scratch scratch(scratch_memory);
  auto* positions = scratch.take<Position<T>>(chunks.max_positions);
  auto* addends = scratch.take<Addend<T>>(chunks.max_positions);
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
        fill_addends(model, input, row, positions, length, addends);
        Vec<T> a[strip_vectors];
        load_state(state(s + 1, row), a);
        if (units < strip) {
          advance_strip<true, S>(model, positions, addends, length, h0, units, state_unit<A, T>(), a);
        } else {
          advance_strip<false, S>(model, positions, addends, length, h0, units, state_unit<A, T>(), a);
        }
        store_state(a, state(s + 1, row));
      }
    }
  }
}

}  // namespace

void nade_forward(const NadeModel& model, const NadeInput& input, const NadeForward& output, const NadeChunks& chunks,
                  const NadeSegment& segment, int64_t row_begin, int64_t row_end, void* scratch) {
  dispatch_nade(model, [&]<typename S, typename T, Activation A>() {
    forward_rows<S, T, A>(model, input, output, chunks, segment, row_begin, row_end, scratch);
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
    const int64_t strip = strip_width<T>(), width = Vec<T>::size(), padded = padded_hidden<T>(model);
    const int64_t steps = Scratch::bytes<Position<T>>(chunks.max_positions) +
                          Scratch::bytes<Addend<T>>(chunks.max_positions);
    layout->strip = strip;
    layout->strips = padded / strip;
    layout->state_bytes = static_cast<int64_t>(sizeof(T)) * padded;
    layout->change_bytes = sizeof(Change<T>);
    layout->steps_bytes = steps;
    layout->forward_bytes = Scratch::bytes<T>(rows * padded) + Scratch::bytes<T>(chunks.max_out_rows * width) + steps +
                            Scratch::bytes<T>(chunks.max_out_rows) + 2 * Scratch::bytes<T>(chunks.max_positions);
    layout->backward_weights_bytes = nade_backward_weights_scratch_bytes(model, chunks, batch);
    layout->backward_input_bytes = Scratch::bytes<T>((chunks.count + 1) * padded) + Scratch::bytes<T>(padded) +
                                   Scratch::bytes<T>((chunks.max_positions + 1) * 2 * strip) +
                                   Scratch::bytes<T>(chunks.max_positions * 2 * width) + steps;
    layout->sample_bytes = nade_sample_scratch_bytes(model, chunks, rows);
  };
  if (model.storage == ScalarType::float64) {
    fill.template operator()<double>();
  } else {
    fill.template operator()<float>();
  }
}

}  // namespace ar_fast::CPU_CAPABILITY
