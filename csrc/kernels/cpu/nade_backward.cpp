// NADE backward. States are kept at the start of every chunk and recomputed forward inside it, never un-subtracted.
#include "nade_strip.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

template <typename T>
void add_to(T* sum, const Vec<T>& value) {
  (Vec<T>::loadu(sum) + value).store(sum);
}

// sum over k of grad_k out_weight_k: the gradient of h at one position.
template <bool Ragged, typename S, typename T>
inline void grad_activation(const NadeModel& model, const Position<T>& position, const T* grad, int64_t h0,
                            int64_t units, Vec<T> (&dh)[strip_vectors]) {
  const S* out_weight = static_cast<const S*>(model.out_weight) + h0;
  for (int64_t k = 0; k < position.out_rows; ++k) {
    Vec<T> w[strip_vectors];
    load_strip<Ragged, T>(out_weight + (position.out_row + k) * model.hidden, units, w);
    const Vec<T> g(grad[position.out_row + k]);
    for (int u = 0; u < strip_vectors; ++u) dh[u] = at::vec::fmadd(g, w[u], dh[u]);
  }
}

// Rows of the batch that go backward through a chunk together: they share the loads of out_weight and the sums of its
// gradient. More would not fit into the registers.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int rows_together = 2;
#else
constexpr int rows_together = 1;
#endif

// A row of the batch in a chunk.
template <typename T>
struct ChunkRow {
  const Change<T>*changes, *changes_end;
  const T* grad;         // of its parameters
  const T* checkpoint;   // its state before the chunk
  T* delta;              // the gradient of its state, in: after the chunk, out: before it
  T* activations;        // [positions + 1, strip] scratch: one for each distinct state, in ascending order
};

// Where a row adds an input, in the order of positions; found once for all strips. Inputs of zero are left out.
template <typename T>
struct Changes {
  const Change<T>* changes;   // [B, D]
  const int64_t* begins;      // [B, chunks + 1] in a row's changes
  int64_t variables, chunks;

  Changes(const NadeModel& model, const NadeChunks& cuts, const NadeChanges& found)
      : changes(static_cast<const Change<T>*>(found.changes)), begins(found.begins), variables(model.variables),
        chunks(cuts.count) {}
  const Change<T>* begin(int64_t row, int64_t chunk) const {
    return changes + row * variables + begins[row * (chunks + 1) + chunk];
  }
  const Change<T>* end(int64_t row, int64_t chunk) const { return begin(row, chunk + 1); }
};

// a += x W over some changes.
template <bool Ragged, typename S, typename T>
AR_FAST_INLINE void add_changes(const S* in_weight, int64_t hidden, const Position<T>* positions,
                                const Change<T>* first, const Change<T>* last, int64_t units, T unit,
                                Vec<T> (&a)[strip_vectors]) {
  for (; first != last; ++first) {
    add_row<Ragged>(in_weight + (positions[first->position].in_row + first->category) * hidden, unit * first->x, units,
                    a);
  }
}

// Recomputes a row's activations forward; returns the last of them. With activation_scale there is one for each position,
// else one for each state.
template <bool Ragged, typename S, typename T, Activation A>
T* recompute_activations(const NadeModel& model, const Position<T>* positions, const ChunkRow<T>& row, int64_t count,
                         int64_t h0, int64_t units) {
  constexpr int64_t strip = strip_width<T>();
  const S* in_weight = static_cast<const S*>(model.in_weight) + h0;
  Vec<T> a[strip_vectors], h[strip_vectors];
  load_state(row.checkpoint, a);
  T* top = row.activations;
  const Change<T>* change = row.changes;
  if (model.activation_scale) {
    for (int64_t p = 0; p < count; ++p, top += strip) {
      activate_strip<A, true>(a, positions[p].scale, h);
      store_state(h, top);
      if (change != row.changes_end && change->position == p) {
        add_changes<Ragged>(in_weight, model.hidden, positions, change, change + 1, units, state_unit<A, T>(), a);
        ++change;
      }
    }
    return top - strip;
  }
  activate_strip<A, false>(a, T(1), h);
  store_state(h, top);
  for (; change != row.changes_end; ++change) {
    // The state after the chunk is the next chunk's.
    if (change->position == count - 1) break;
    add_changes<Ragged>(in_weight, model.hidden, positions, change, change + 1, units, state_unit<A, T>(), a);
    activate_strip<A, false>(a, T(1), h);
    store_state(h, top += strip);
  }
  return top;
}

// Some rows through one chunk, forward then backward; grad_in and grad_out hold the chunk's rows by position. Rows are
// added in their order, so the sums do not depend on how many go together.
template <int Rows, bool Ragged, typename S, typename T, Activation A>
void weights_chunk(const NadeModel& model, const Position<T>* positions, const ChunkRow<T>* rows, int64_t count,
                   int64_t h0, int64_t units, int64_t out_slots, T* grad_in, T* grad_out) {
  constexpr int64_t strip = strip_width<T>(), width = Vec<T>::size();
  const bool scaled = model.activation_scale != nullptr;
  const S* out_weight = static_cast<const S*>(model.out_weight) + h0;
  Vec<T> h[Rows][strip_vectors], d[Rows][strip_vectors], dh[Rows][strip_vectors];
  T* top[Rows];
  const Change<T>* change[Rows];
  AR_FAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    top[r] = recompute_activations<Ragged, S, T, A>(model, positions, rows[r], count, h0, units);
    change[r] = rows[r].changes_end;
    load_state(rows[r].delta, d[r]);
    load_state(top[r], h[r]);
    for (int u = 0; u < strip_vectors; ++u) dh[r][u] = zero<T>();
  }
  // Within a run of zeros h does not change, so dh is gathered over the run and passed on once.
  const auto pass_on = [&](int r, T scale) __attribute__((always_inline)) {
    AR_FAST_UNROLL
    for (int u = 0; u < strip_vectors; ++u) {
      const Vec<T> slope = scaled ? dh[r][u] * Vec<T>(scale) : dh[r][u];
      d[r][u] = at::vec::fmadd(slope, derivative_from_value<A>(h[r][u]), d[r][u]);
      dh[r][u] = zero<T>();
    }
    top[r] -= strip;
  };
  for (int64_t p = count - 1; p >= 0; --p) {
    const Position<T>& position = positions[p];
    bool changes[Rows];
    AR_FAST_UNROLL
    for (int r = 0; r < Rows; ++r) {
      changes[r] = change[r] != rows[r].changes && change[r][-1].position == p;
      if (p < count - 1 && (changes[r] || scaled)) {
        pass_on(r, positions[p + 1].scale);
        load_state(top[r], h[r]);
      }
      if (changes[r]) --change[r];
    }
    if (Rows == 2 && changes[0] && changes[Rows - 1] && change[0]->category == change[Rows - 1]->category) {
      T* row = grad_in + (position.in_slot + change[0]->category) * strip;
      const Vec<T> x0(change[0]->x), x1(change[Rows - 1]->x);
      AR_FAST_UNROLL
      for (int u = 0; u < strip_vectors; ++u) {
        const Vec<T> sum = at::vec::fmadd(x0, d[0][u], Vec<T>::loadu(row + u * width));
        at::vec::fmadd(x1, d[Rows - 1][u], sum).store(row + u * width);
      }
    } else {
      AR_FAST_UNROLL
      for (int r = 0; r < Rows; ++r) {
        if (!changes[r]) continue;
        T* row = grad_in + (position.in_slot + change[r]->category) * strip;
        const Vec<T> x(change[r]->x);
        AR_FAST_UNROLL
        for (int u = 0; u < strip_vectors; ++u) {
          at::vec::fmadd(x, d[r][u], Vec<T>::loadu(row + u * width)).store(row + u * width);
        }
      }
    }
    out_slots -= position.out_rows;
    for (int64_t k = 0; k < position.out_rows; ++k) {
      Vec<T> g[Rows];
      const S* weight = out_weight + (position.out_row + k) * model.hidden;
      T* row = grad_out + (out_slots + k) * strip;
      AR_FAST_UNROLL
      for (int r = 0; r < Rows; ++r) g[r] = Vec<T>(rows[r].grad[position.out_row + k]);
      AR_FAST_UNROLL
      for (int u = 0; u < strip_vectors; ++u) {
        const Vec<T> w = load_strip_vector<Ragged, T>(weight, u, units);
        Vec<T> sum = Vec<T>::loadu(row + u * width);
        AR_FAST_UNROLL
        for (int r = 0; r < Rows; ++r) {
          dh[r][u] = at::vec::fmadd(g[r], w, dh[r][u]);
          sum = at::vec::fmadd(g[r], h[r][u], sum);
        }
        sum.store(row + u * width);
      }
    }
  }
  AR_FAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    pass_on(r, positions[0].scale);
    store_state(d[r], rows[r].delta);
  }
}

// Scratch of one strip.
template <typename T>
struct StripBuffers {
  T* checkpoints;   // [chunks + 1, B, strip]
  T* delta;         // [B, strip]
  T* grad_in;       // [max_in_rows, strip]
  T* grad_out;      // [max_out_rows, strip]
  Position<T>* positions;
  ChunkRow<T> rows[rows_together];

  StripBuffers(const NadeChunks& chunks, int64_t batch, Scratch& scratch) {
    constexpr int64_t strip = strip_width<T>();
    checkpoints = scratch.take<T>((chunks.count + 1) * batch * strip);
    delta = scratch.take<T>(batch * strip);
    grad_in = scratch.take<T>(chunks.max_in_rows * strip);
    grad_out = scratch.take<T>(chunks.max_out_rows * strip);
    positions = scratch.take<Position<T>>(chunks.max_positions);
    for (ChunkRow<T>& row : rows) {
      row.activations = scratch.take<T>((chunks.max_positions + 1) * strip);
    }
  }
};

template <typename S, typename T, Activation A>
void backward_weights(const NadeModel& model, const NadeInput& input, const NadeBackward& output,
                      const NadeChunks& chunks, const NadeChanges& found, int64_t strip_index, void* scratch_memory) {
  constexpr int64_t strip = strip_width<T>();
  const int64_t batch = input.batch, hidden = model.hidden, h0 = strip_index * strip;
  const int64_t units = hidden - h0 < strip ? hidden - h0 : strip;
  const bool ragged = units < strip;
  Scratch scratch(scratch_memory);
  StripBuffers<T> buffers(chunks, batch, scratch);
  T *delta = buffers.delta, *grad_in = buffers.grad_in, *grad_out = buffers.grad_out;
  Position<T>* positions = buffers.positions;
  ChunkRow<T>* rows = buffers.rows;
  const Changes<T> changes(model, chunks, found);
  const S* in_weight = static_cast<const S*>(model.in_weight) + h0;
  const auto checkpoint = [&](int64_t c, int64_t row) { return buffers.checkpoints + (c * batch + row) * strip; };

  for (int64_t row = 0; row < batch; ++row) {
    initial_state(model, row, h0, units, strip, state_unit<A, T>(), checkpoint(0, row));
    for (int64_t j = 0; j < strip; ++j) delta[row * strip + j] = T(0);
  }
  for (int64_t c = 0; c + 1 < chunks.count; ++c) {
    fill_positions(model, chunks.starts[c], chunks.starts[c + 1], positions);
    for (int64_t row = 0; row < batch; ++row) {
      Vec<T> a[strip_vectors];
      load_state(checkpoint(c, row), a);
      const Change<T>*first = changes.begin(row, c), *last = changes.end(row, c);
      if (ragged) {
        add_changes<true>(in_weight, hidden, positions, first, last, units, state_unit<A, T>(), a);
      } else {
        add_changes<false>(in_weight, hidden, positions, first, last, units, state_unit<A, T>(), a);
      }
      store_state(a, checkpoint(c + 1, row));
    }
  }
  const T* grad = static_cast<const T*>(output.grad_parameters);
  for (int64_t c = chunks.count - 1; c >= 0; --c) {
    const int64_t start = chunks.starts[c], count = chunks.starts[c + 1] - start;
    const auto [in_rows, out_rows] = fill_positions(model, start, start + count, positions);
    for (int64_t j = 0; j < in_rows * strip; ++j) grad_in[j] = T(0);
    for (int64_t j = 0; j < out_rows * strip; ++j) grad_out[j] = T(0);
    const auto go = [&]<int Rows>(int64_t first) {
      for (int r = 0; r < Rows; ++r) {
        rows[r].changes = changes.begin(first + r, c);
        rows[r].changes_end = changes.end(first + r, c);
        rows[r].grad = grad + (first + r) * model.out_rows;
        rows[r].checkpoint = checkpoint(c, first + r);
        rows[r].delta = delta + (first + r) * strip;
      }
      const auto kernel = ragged ? weights_chunk<Rows, true, S, T, A> : weights_chunk<Rows, false, S, T, A>;
      kernel(model, positions, rows, count, h0, units, out_rows, grad_in, grad_out);
    };
    int64_t row = 0;
    for (; row + rows_together <= batch; row += rows_together) go.template operator()<rows_together>(row);
    for (; row < batch; ++row) go.template operator()<1>(row);
    int64_t out_slot = 0;
    for (int64_t p = 0; p < count; ++p) {
      const Position<T>& position = positions[p];
      for (int64_t k = 0; k < position.in_rows; ++k) {
        store_strip(grad_in + (position.in_slot + k) * strip, units,
                    static_cast<S*>(output.grad_in_weight) + (position.in_row + k) * hidden + h0);
      }
      for (int64_t k = 0; k < position.out_rows; ++k, ++out_slot) {
        store_strip(grad_out + out_slot * strip, units,
                    static_cast<S*>(output.grad_out_weight) + (position.out_row + k) * hidden + h0);
      }
    }
  }
  T* grad_bias = static_cast<T*>(output.grad_in_bias) + h0;
  if (model.in_bias_stride == 0) {
    for (int64_t j = 0; j < units; ++j) grad_bias[j] = T(0);
  }
  for (int64_t row = 0; row < batch; ++row) {
    for (int64_t j = 0; j < units; ++j) {
      if (model.in_bias_stride) {
        grad_bias[row * hidden + j] = delta[row * strip + j];
      } else {
        grad_bias[j] += delta[row * strip + j];
      }
    }
  }
}

// One strip of one row through one chunk for grad_x and grad_activation_scale: lanes are summed by the caller.
template <bool Ragged, typename S, typename T, Activation A>
void input_chunk(const NadeModel& model, const Position<T>* positions, const Addend<T>* addends, int64_t count,
                 int64_t h0, int64_t units, const T* grad, const T* checkpoint, T* delta, T* states, T* activations, T* partial_x,
                 T* partial_scale) {
  constexpr int64_t strip = strip_width<T>(), width = Vec<T>::size();
  const S* in_weight = static_cast<const S*>(model.in_weight) + h0;
  Vec<T> a[strip_vectors], h[strip_vectors], d[strip_vectors], w[strip_vectors];
  load_state(checkpoint, a);
  for (int64_t p = 0; p < count; ++p) {
    activate_strip<A, true>(a, positions[p].scale, h);
    store_state(a, states + p * strip);
    store_state(h, activations + p * strip);
    advance_strip<Ragged, S>(model, positions + p, addends + p, 1, h0, units, state_unit<A, T>(), a);
  }
  load_state(delta, d);
  for (int64_t p = count - 1; p >= 0; --p) {
    const Position<T>& position = positions[p];
    if (partial_x) {
      Vec<T> sum = zero<T>();
      load_strip<Ragged, T>(in_weight + position.in_row * model.hidden, units, w);
      for (int u = 0; u < strip_vectors; ++u) sum = at::vec::fmadd(d[u], w[u], sum);
      add_to(partial_x + p * width, sum);
    }
    Vec<T> dh[strip_vectors] = {zero<T>(), zero<T>(), zero<T>(), zero<T>()};
    grad_activation<Ragged, S>(model, position, grad, h0, units, dh);
    load_state(states + p * strip, a);
    load_state(activations + p * strip, h);
    const Vec<T> s(position.scale);
    Vec<T> sum = zero<T>();
    for (int u = 0; u < strip_vectors; ++u) {
      const Vec<T> slope = dh[u] * derivative_from_value<A>(h[u]);
      sum = at::vec::fmadd(slope, a[u], sum);
      d[u] = at::vec::fmadd(slope, s, d[u]);
    }
    if (partial_scale) add_to(partial_scale + p * width, sum);
  }
  store_state(d, delta);
}

template <typename S, typename T, Activation A>
void backward_input(const NadeModel& model, const NadeInput& input, const NadeBackward& output,
                    const NadeChunks& chunks, int64_t row, void* scratch_memory) {
  constexpr int64_t strip = strip_width<T>(), width = Vec<T>::size();
  const int64_t padded = padded_hidden<T>(model);
  Scratch scratch(scratch_memory);
  T* checkpoints = scratch.take<T>((chunks.count + 1) * padded);
  T* delta = scratch.take<T>(padded);
  T* states = scratch.take<T>((chunks.max_positions + 1) * 2 * strip);
  T* activations = states + chunks.max_positions * strip;
  T* partial_x = scratch.take<T>(chunks.max_positions * 2 * width);
  T* partial_scale = partial_x + chunks.max_positions * width;
  auto* positions = scratch.take<Position<T>>(chunks.max_positions);
  auto* addends = scratch.take<Addend<T>>(chunks.max_positions);
  const T* grad = static_cast<const T*>(output.grad_parameters) + row * model.out_rows;
  const auto units_at = [&](int64_t h0) { return model.hidden - h0 < strip ? model.hidden - h0 : strip; };

  initial_state(model, row, 0, model.hidden, padded, state_unit<A, T>(), checkpoints);
  for (int64_t j = 0; j < padded; ++j) delta[j] = T(0);
  for (int64_t c = 0; c + 1 < chunks.count; ++c) {
    const int64_t start = chunks.starts[c], count = chunks.starts[c + 1] - start;
    fill_positions(model, start, start + count, positions);
    fill_addends(model, input, row, positions, count, addends);
    for (int64_t h0 = 0; h0 < padded; h0 += strip) {
      Vec<T> a[strip_vectors];
      load_state(checkpoints + c * padded + h0, a);
      advance_strip<true, S>(model, positions, addends, count, h0, units_at(h0), state_unit<A, T>(), a);
      store_state(a, checkpoints + (c + 1) * padded + h0);
    }
  }
  for (int64_t c = chunks.count - 1; c >= 0; --c) {
    const int64_t start = chunks.starts[c], count = chunks.starts[c + 1] - start;
    fill_positions(model, start, start + count, positions);
    fill_addends(model, input, row, positions, count, addends);
    for (int64_t k = 0; k < count * width; ++k) partial_x[k] = partial_scale[k] = T(0);
    for (int64_t h0 = 0; h0 < padded; h0 += strip) {
      input_chunk<true, S, T, A>(model, positions, addends, count, h0, units_at(h0), grad, checkpoints + c * padded + h0, delta + h0,
                                 states, activations, output.grad_x ? partial_x : nullptr,
                                 output.grad_activation_scale ? partial_scale : nullptr);
    }
    for (int64_t p = 0; p < count; ++p) {
      const int64_t index = row * model.variables + positions[p].variable;
      if (output.grad_x) {
        static_cast<T*>(output.grad_x)[index] = horizontal_sum(Vec<T>::loadu(partial_x + p * width));
      }
      if (output.grad_activation_scale) {
        static_cast<T*>(output.grad_activation_scale)[index] =
            horizontal_sum(Vec<T>::loadu(partial_scale + p * width)) / state_unit<A, T>();
      }
    }
  }
}

}  // namespace

int64_t nade_backward_weights_scratch_bytes(const NadeModel& model, const NadeChunks& chunks, int64_t batch) {
  Scratch scratch(nullptr);
  if (model.storage == ScalarType::float64) {
    const StripBuffers<double> buffers(chunks, batch, scratch);
  } else {
    const StripBuffers<float> buffers(chunks, batch, scratch);
  }
  return scratch.bytes_taken();
}

void nade_changes(const NadeModel& model, const NadeInput& input, const NadeChunks& chunks, const NadeChanges& found,
                  int64_t row_begin, int64_t row_end, void* scratch) {
  const auto fill = [&]<typename T>() {
    Scratch arrays(scratch);
    auto* positions = arrays.take<Position<T>>(chunks.max_positions);
    auto* addends = arrays.take<Addend<T>>(chunks.max_positions);
    for (int64_t row = row_begin; row < row_end; ++row) found.begins[row * (chunks.count + 1)] = 0;
    for (int64_t c = 0; c < chunks.count; ++c) {
      const int64_t start = chunks.starts[c], count = chunks.starts[c + 1] - start;
      fill_positions(model, start, start + count, positions);
      for (int64_t row = row_begin; row < row_end; ++row) {
        int64_t* begins = found.begins + row * (chunks.count + 1) + c;
        auto* changes = static_cast<Change<T>*>(found.changes) + row * model.variables;
        fill_addends(model, input, row, positions, count, addends);
        int64_t next = begins[0];
        for (int64_t p = 0; p < count; ++p) {
          // Written in any case, kept where the input is not zero: no branch to guess.
          changes[next] = {static_cast<int32_t>(p), static_cast<int32_t>(addends[p].category), addends[p].x};
          next += addends[p].category >= 0;
          if (next == model.variables) break;
        }
        begins[1] = next;
      }
    }
  };
  model.storage == ScalarType::float64 ? fill.template operator()<double>() : fill.template operator()<float>();
}

void nade_backward_weights(const NadeModel& model, const NadeInput& input, const NadeBackward& output,
                           const NadeChunks& chunks, const NadeChanges& changes, int64_t strip, void* scratch) {
  dispatch_nade(model, [&]<typename S, typename T, Activation A>() {
    backward_weights<S, T, A>(model, input, output, chunks, changes, strip, scratch);
  });
}

void nade_backward_input(const NadeModel& model, const NadeInput& input, const NadeBackward& output,
                         const NadeChunks& chunks, int64_t row_begin, int64_t row_end, void* scratch) {
  dispatch_nade(model, [&]<typename S, typename T, Activation A>() {
    for (int64_t row = row_begin; row < row_end; ++row) {
      backward_input<S, T, A>(model, input, output, chunks, row, scratch);
    }
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
