// NADE backward. States are kept at the start of every chunk and recomputed forward inside it; inputs are never
// subtracted again.
#include <algorithm>
#include <cmath>

#include "nade_form.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

template <typename T>
void add_to(T* sum, const Vec<T>& value) {
  (Vec<T>::loadu(sum) + value).store(sum);
}

// sum over k of grad_k out_weight_k: the gradient of h at one position.
template <typename S, typename T>
AR_FAST_INLINE Strip<T> grad_activation(const NadeModel& model, const Position<T>& position, const T* grad, int64_t h0,
                                        int64_t units) {
  const S* out_weight = static_cast<const S*>(model.out_weight) + h0;
  Strip<T> dh = vectors<strip_vectors>([](auto) { return zero<T>(); });
  for (int64_t k = 0; k < position.out_rows; ++k) {
    add_scaled(load_strip<T>(out_weight + (position.out_row + k) * model.hidden, units), grad[position.out_row + k],
               dh);
  }
  return dh;
}

// Rows of the batch that go backward through a chunk together: they share the loads of out_weight and the sums of its
// gradient. With more rows these would not fit into the registers.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int rows_together = 2;
#else
constexpr int rows_together = 1;
#endif
constexpr int dense_rows_together = 2;

// A row of the batch in a chunk.
template <typename T>
struct ChunkRow {
  const Change<T>*changes, *changes_end;
  const T* grad;         // of its parameters
  const T* checkpoint;   // its state before the chunk
  T* delta;              // the gradient of its state, in: after the chunk, out: before it
  T* activations;        // [positions + 1, strip] scratch: one for each distinct state, in ascending order
};

// Where a row adds an input, in the order of positions; computed once for all strips. Inputs of zero are skipped.
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

// Recomputes a row's activations forward and returns the last of them. If the form is scaled there is one for each
// position, else one for each state.
template <Form F, typename T, Activation A>
T* recompute_activations(const Position<T>* positions, const ChunkRow<T>& row, int64_t count, PackedInput<T>& in) {
  constexpr int64_t strip = strip_width<T>();
  in.bring(row.changes, row.changes_end);
  Strip<T> a = load_vectors(row.checkpoint);
  T* top = row.activations;
  const Change<T>* change = row.changes;
  if constexpr (F == Form::scaled_pre_activations) {
    for (int64_t p = 0; p < count; ++p, top += strip) {
      store_vectors(activate_vectors<F, A>(a, positions[p].scale), top);
      if (change != row.changes_end && change->position == p) advance<F, A>(in.strip(0), 0, *change++, a);
    }
    return top - strip;
  }
  store_vectors(activate_vectors<F, A>(a, T(1)), top);
  for (; change != row.changes_end; ++change) {
    // The state after the chunk belongs to the next chunk.
    if (change->position == count - 1) break;
    advance<F, A>(in.strip(0), 0, *change, a);
    store_vectors(activate_vectors<F, A>(a, T(1)), top += strip);
  }
  return top;
}

// Takes several rows through one chunk, forward and then backward. out holds the chunk's rows of out_weight, grad_in
// and grad_out the rows of the gradients. Rows are added in their order, so the sums do not depend on the grouping.
template <int Rows, Form F, typename T, Activation A>
void weights_chunk(const Position<T>* positions, const ChunkRow<T>* rows, int64_t count, PackedInput<T>& in,
                   const T* out, T* grad_in, T* grad_out) {
  constexpr int64_t strip = strip_width<T>(), width = Vec<T>::size();
  constexpr bool scaled = F == Form::scaled_pre_activations;
  Vec<T> h[Rows][strip_vectors], d[Rows][strip_vectors], dh[Rows][strip_vectors];
  T* top[Rows];
  const Change<T>* change[Rows];
  AR_FAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    top[r] = recompute_activations<F, T, A>(positions, rows[r], count, in);
    change[r] = rows[r].changes_end;
    for (int u = 0; u < strip_vectors; ++u) {
      h[r][u] = Vec<T>::loadu(top[r] + u * width);
      d[r][u] = Vec<T>::loadu(rows[r].delta + u * width);
      dh[r][u] = zero<T>();
    }
  }
  // Within a run of zeros h does not change, so dh is summed over the run and passed on once.
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
        for (int u = 0; u < strip_vectors; ++u) h[r][u] = Vec<T>::loadu(top[r] + u * width);
      }
      if (changes[r]) --change[r];
    }
    if (Rows == 2 && changes[0] && changes[Rows - 1] && change[0]->in_slot == change[Rows - 1]->in_slot) {
      T* row = grad_in + change[0]->in_slot * strip;
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
        T* row = grad_in + change[r]->in_slot * strip;
        const Vec<T> x(change[r]->x);
        AR_FAST_UNROLL
        for (int u = 0; u < strip_vectors; ++u) {
          at::vec::fmadd(x, d[r][u], Vec<T>::loadu(row + u * width)).store(row + u * width);
        }
      }
    }
    for (int64_t k = 0; k < position.out_rows; ++k) {
      Vec<T> g[Rows];
      const T* weight = out + (position.out_slot + k) * strip;
      T* row = grad_out + (position.out_slot + k) * strip;
      AR_FAST_UNROLL
      for (int r = 0; r < Rows; ++r) g[r] = Vec<T>(rows[r].grad[position.out_row + k]);
      AR_FAST_UNROLL
      for (int u = 0; u < strip_vectors; ++u) {
        const Vec<T> w = Vec<T>::loadu(weight + u * width);
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
    for (int u = 0; u < strip_vectors; ++u) d[r][u].store(rows[r].delta + u * width);
  }
}

// The same where every position adds one input and has one parameter, for sigmoids: dh is one product g w, so that
// dh h (1 - h) = w (1 - h) (g h), whose last factor is also what the gradient of w adds: a multiply-add is an addition.
template <int Rows, typename T, Activation A>
void dense_weights_chunk(const Position<T>* positions, const ChunkRow<T>* rows, int64_t count, PackedInput<T>& in,
                         const T* out, T* grad_in, T* grad_out) {
  constexpr int64_t strip = strip_width<T>(), width = Vec<T>::size();
  const Vec<T> one(T(1));
  Vec<T> d[Rows][strip_vectors];
  AR_FAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    recompute_activations<Form::bounded, T, A>(positions, rows[r], count, in);
    AR_FAST_UNROLL
    for (int u = 0; u < strip_vectors; ++u) d[r][u] = Vec<T>::loadu(rows[r].delta + u * width);
  }
  for (int64_t p = count - 1; p >= 0; --p) {
    const int64_t at = p * strip;
    Vec<T> x[Rows], g[Rows];
    AR_FAST_UNROLL
    for (int r = 0; r < Rows; ++r) {
      x[r] = Vec<T>(rows[r].changes[p].x);
      g[r] = Vec<T>(rows[r].grad[positions[p].out_row]);
    }
    AR_FAST_UNROLL
    for (int u = 0; u < strip_vectors; ++u) {
      const Vec<T> w = Vec<T>::loadu(out + at + u * width);
      Vec<T> in_sum = Vec<T>::loadu(grad_in + at + u * width), out_sum = Vec<T>::loadu(grad_out + at + u * width);
      AR_FAST_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const Vec<T> h = Vec<T>::loadu(rows[r].activations + at + u * width), gh = g[r] * h;
        in_sum = at::vec::fmadd(x[r], d[r][u], in_sum);
        out_sum = out_sum + gh;
        d[r][u] = at::vec::fmadd(w * (one - h), gh, d[r][u]);
      }
      in_sum.store(grad_in + at + u * width);
      out_sum.store(grad_out + at + u * width);
    }
  }
  AR_FAST_UNROLL
  for (int r = 0; r < Rows; ++r) {
    for (int u = 0; u < strip_vectors; ++u) d[r][u].store(rows[r].delta + u * width);
  }
}

// Scratch of one strip.
template <typename T>
struct StripBuffers {
  static constexpr int most_rows = std::max(rows_together, dense_rows_together);
  T* checkpoints;   // [chunks + 1, B, strip]
  T* reach;         // [B] a bound on |a|
  bool* bounded;    // [chunks, B] whether a row's states are bounded in a chunk, if they are not odds
  T* delta;         // [B, strip]
  T* grad_in;       // [max_in_rows, strip]
  T* grad_out;      // [max_out_rows, strip]
  Position<T>* positions;
  PackedInput<T> in;
  PackedRows<T> out;
  ChunkRow<T> rows[most_rows];

  StripBuffers(const NadeChunks& chunks, int64_t batch, Scratch& scratch)
      : checkpoints(scratch.take<T>((chunks.count + 1) * batch * strip_width<T>())), reach(scratch.take<T>(batch)),
        bounded(scratch.take<bool>(chunks.count * batch)),
        delta(scratch.take<T>(batch * strip_width<T>())),
        grad_in(scratch.take<T>(chunks.max_in_rows * strip_width<T>())),
        grad_out(scratch.take<T>(chunks.max_out_rows * strip_width<T>())),
        positions(scratch.take<Position<T>>(chunks.max_positions)), in(chunks.max_in_rows, 1, scratch),
        out(chunks.max_out_rows, 1, scratch) {
    for (ChunkRow<T>& row : rows) row.activations = scratch.take<T>((chunks.max_positions + 1) * strip_width<T>());
  }
};

// The gradients of one strip of hidden units.
template <typename T, Activation A>
class StripBackward {
 public:
  StripBackward(const NadeModel& model, const NadeInput& input, const NadeBackward& output, const NadeChunks& chunks,
                const NadeChanges& found, int64_t strip_index, const WeightSteps<T>& weights, Scratch& scratch)
      : model_(model), output_(output), chunks_(chunks), weights_(weights), batch_(input.batch),
        h0_(strip_index * strip), units_(std::min(strip, model.hidden - h0_)), changes_(model, chunks, found),
        b_(chunks, input.batch, scratch) {}

  // Computes every state at the start of a chunk; false if the form is odds and they would leave their range.
  template <Form F>
  bool find_checkpoints() {
    constexpr bool odds = F == Form::odds;
    for (int64_t row = 0; row < batch_; ++row) {
      initial_state(model_, row, h0_, units_, strip, odds ? T(1) : state_unit<A, T>(), checkpoint(0, row));
      b_.reach[row] = std::numeric_limits<T>::infinity();
      if (!odds) continue;
      begin_odds(checkpoint(0, row), strip, T(1), b_.reach[row]);
      if (b_.reach[row] == std::numeric_limits<T>::infinity()) return false;
    }
    for (int64_t c = 0; c < chunks_.count; ++c) {
      fill_positions(model_, chunks_.starts[c], chunks_.starts[c + 1], b_.positions);
      weights_.begin_input(model_, b_.positions, h0_, units_, F == Form::odds, b_.in);
      for (int64_t row = 0; row < batch_; ++row) {
        const Change<T>*change = changes_.begin(row, c), *last = changes_.end(row, c);
        b_.in.bring(change, last);
        Strip<T> a = load_vectors(checkpoint(c, row));
        const T more = odds || may_bound<F> ? b_.in.reach(change, last) : T(0);
        if constexpr (may_bound<F>) {
          b_.bounded[c * batch_ + row] =
              stay_bounded(more, checkpoint(c, row), strip, state_unit<A, T>(), b_.reach[row]);
        }
        for (; change != last; ++change) advance<F, A>(b_.in.strip(0), 0, *change, a);
        if (odds && !keep_odds(more, checkpoint(c, row), strip, T(1), b_.reach[row])) return false;
        store_vectors(a, checkpoint(c + 1, row));
      }
    }
    return true;
  }

  template <Form F>
  void run() {
    for (int64_t j = 0; j < batch_ * strip; ++j) b_.delta[j] = T(0);
    for (int64_t c = chunks_.count - 1; c >= 0; --c) {
      const int64_t start = chunks_.starts[c], count = chunks_.starts[c + 1] - start;
      const auto [in_rows, out_rows] = fill_positions(model_, start, start + count, b_.positions);
      weights_.pack_out_weight(model_, b_.positions, count, h0_, units_, b_.out);
      weights_.begin_input(model_, b_.positions, h0_, units_, F == Form::odds, b_.in);
      std::fill_n(b_.grad_in, in_rows * strip, T(0));
      std::fill_n(b_.grad_out, out_rows * strip, T(0));
      // Consecutive rows of one kind go together; the kind of a row does not depend on the others.
      const auto kind_of = [&](int64_t row) {
        if (!may_bound<F> || !b_.bounded[c * batch_ + row]) return Kind::any;
        const bool changes_each = changes_.end(row, c) - changes_.begin(row, c) == count;
        return changes_each && in_rows == count && out_rows == count ? Kind::dense : Kind::bounded;
      };
      for (int64_t row = 0; row < batch_;) {
        const Kind kind = kind_of(row);
        const int most = kind == Kind::dense ? dense_rows_together : rows_together;
        int together = 1;
        while (together < most && row + together < batch_ && kind_of(row + together) == kind) ++together;
        if (together < most) together = 1;
        for (int r = 0; r < together; ++r) begin_row(b_.rows[r], c, row + r);
        const auto go = [&](const auto& chunk) {
          chunk(b_.positions, b_.rows, count, b_.in, b_.out.data, b_.grad_in, b_.grad_out);
        };
        if constexpr (may_bound<F>) {
          if (kind == Kind::dense) {
            go(together == 1 ? &dense_weights_chunk<1, T, A> : &dense_weights_chunk<dense_rows_together, T, A>);
          } else if (kind == Kind::bounded) {
            go(together == 1 ? &weights_chunk<1, Form::bounded, T, A>
                             : &weights_chunk<rows_together, Form::bounded, T, A>);
          }
        }
        if (kind == Kind::any) {
          go(together == 1 ? &weights_chunk<1, F, T, A> : &weights_chunk<rows_together, F, T, A>);
        }
        row += together;
      }
      store_gradients(count);
    }
    store_bias_gradient();
  }

 private:
  static constexpr int64_t strip = strip_width<T>();

  // Whether rows of this form may turn out to be bounded.
  template <Form F>
  static constexpr bool may_bound = F == Form::pre_activations && has_bounded_form<A, T>();
  enum class Kind { any, bounded, dense };

  void begin_row(ChunkRow<T>& row, int64_t chunk, int64_t index) {
    row.changes = changes_.begin(index, chunk);
    row.changes_end = changes_.end(index, chunk);
    row.grad = static_cast<const T*>(output_.grad_parameters) + index * model_.out_rows;
    row.checkpoint = checkpoint(chunk, index);
    row.delta = b_.delta + index * strip;
  }

  T* checkpoint(int64_t chunk, int64_t row) { return b_.checkpoints + (chunk * batch_ + row) * strip; }

  void store_gradients(int64_t count) {
    for (int64_t p = 0; p < count; ++p) {
      const Position<T>& position = b_.positions[p];
      for (int64_t k = 0; k < position.in_rows; ++k) {
        weights_.store(b_.grad_in + (position.in_slot + k) * strip, units_, output_.grad_in_weight,
                       (position.in_row + k) * model_.hidden + h0_);
      }
      for (int64_t k = 0; k < position.out_rows; ++k) {
        weights_.store(b_.grad_out + (position.out_slot + k) * strip, units_, output_.grad_out_weight,
                       (position.out_row + k) * model_.hidden + h0_);
      }
    }
  }

  void store_bias_gradient() {
    T* grad_bias = static_cast<T*>(output_.grad_in_bias) + h0_;
    if (model_.in_bias_stride == 0) std::fill_n(grad_bias, units_, T(0));
    for (int64_t row = 0; row < batch_; ++row) {
      for (int64_t j = 0; j < units_; ++j) {
        if (model_.in_bias_stride) {
          grad_bias[row * model_.hidden + j] = b_.delta[row * strip + j];
        } else {
          grad_bias[j] += b_.delta[row * strip + j];
        }
      }
    }
  }

  const NadeModel& model_;
  const NadeBackward& output_;
  const NadeChunks& chunks_;
  const WeightSteps<T>& weights_;
  const int64_t batch_, h0_, units_;
  const Changes<T> changes_;
  StripBuffers<T> b_;
};

template <Activation A, typename T>
void backward_weights(const NadeModel& model, const NadeInput& input, const NadeBackward& output,
                      const NadeChunks& chunks, const NadeChanges& found, int64_t strip_index,
                      const WeightSteps<T>& weights, void* scratch_memory) {
  Scratch scratch(scratch_memory);
  StripBackward<T, A> strip(model, input, output, chunks, found, strip_index, weights, scratch);
  const auto go = [&]<Form F>() {
    if (!strip.template find_checkpoints<F>()) return false;
    strip.template run<F>();
    return true;
  };
  if constexpr (A == Activation::sigmoid) {
    if (keeps_odds<A>(model, input) && go.template operator()<Form::odds>()) return;
  }
  if (model.activation_scale) {
    go.template operator()<Form::scaled_pre_activations>();
  } else {
    go.template operator()<Form::pre_activations>();
  }
}

// One strip of one row through one chunk for grad_x and grad_activation_scale; the caller sums the lanes.
template <typename S, typename T, Activation A>
void input_chunk(const NadeModel& model, const Position<T>* positions, const Change<T>* change, const Change<T>* last,
                 int64_t count, int64_t h0, int64_t units, bool finite, const T* grad, const T* checkpoint, T* delta,
                 T* states, T* activations, T* partial_x, T* partial_scale) {
  constexpr int64_t strip = strip_width<T>(), width = Vec<T>::size();
  const bool pads = units < strip && !finite;
  const S* in_weight = static_cast<const S*>(model.in_weight) + h0;
  Strip<T> a = load_vectors(checkpoint);
  for (int64_t p = 0; p < count; ++p) {
    store_vectors(a, states + p * strip);
    store_vectors(activate_vectors<Form::scaled_pre_activations, A>(a, positions[p].scale), activations + p * strip);
    if (pads) {
      clear_padding(states + p * strip, units);
      clear_padding(activations + p * strip, units);
    }
    if (change == last || change->position != p) continue;
    add_changes<S>(model, positions, change, change + 1, h0, units, state_unit<A, T>(), a);
    ++change;
  }
  Strip<T> d = load_vectors(delta);
  for (int64_t p = count - 1; p >= 0; --p) {
    const Position<T>& position = positions[p];
    if (partial_x && position.in_rows == 1) {  // a category has no gradient
      Vec<T> sum = zero<T>();
      const Strip<T> w = load_strip<T>(in_weight + position.in_row * model.hidden, units);
      unroll<strip_vectors>([&](auto u) { sum = at::vec::fmadd(d[u], w[u], sum); });
      add_to(partial_x + p * width, sum);
    }
    Strip<T> dh = grad_activation<S>(model, position, grad, h0, units);
    if (pads) dh = without_padding<T>(dh, units);
    const Strip<T> state = load_vectors(states + p * strip), h = load_vectors(activations + p * strip);
    const Vec<T> s(position.scale);
    Vec<T> sum = zero<T>();
    unroll<strip_vectors>([&](auto u) {
      const Vec<T> slope = dh[u] * derivative_from_value<A>(h[u]);
      sum = at::vec::fmadd(slope, state[u], sum);
      d[u] = at::vec::fmadd(slope, s, d[u]);
    });
    if (pads) d = without_padding<T>(d, units);
    if (partial_scale) add_to(partial_scale + p * width, sum);
  }
  store_vectors(d, delta);
}

// The memory of nade_backward_input.
template <typename T>
struct InputBuffers {
  T *checkpoints, *delta;   // [chunks + 1, padded], [padded]
  T *states, *activations;  // [max_positions, strip]
  T *partial_x, *partial_scale;  // [max_positions, lanes]
  StepBuffers<T> steps;

  InputBuffers(const NadeModel& model, const NadeChunks& chunks, Scratch& scratch)
      : checkpoints(scratch.take<T>((chunks.count + 1) * padded_hidden<T>(model))),
        delta(scratch.take<T>(padded_hidden<T>(model))),
        states(scratch.take<T>(chunks.max_positions * strip_width<T>())),
        activations(scratch.take<T>(chunks.max_positions * strip_width<T>())),
        partial_x(scratch.take<T>(chunks.max_positions * Vec<T>::size())),
        partial_scale(scratch.take<T>(chunks.max_positions * Vec<T>::size())), steps(chunks, scratch) {}
};

template <typename S, typename T, Activation A>
void backward_input(const NadeModel& model, const NadeInput& input, const NadeBackward& output,
                    const NadeChunks& chunks, int64_t row, void* scratch_memory) {
  constexpr int64_t strip = strip_width<T>(), width = Vec<T>::size();
  const int64_t padded = padded_hidden<T>(model);
  Scratch scratch(scratch_memory);
  const auto [checkpoints, delta, states, activations, partial_x, partial_scale, steps] =
      InputBuffers<T>(model, chunks, scratch);
  const auto [positions, changes] = steps;
  const T* grad = static_cast<const T*>(output.grad_parameters) + row * model.out_rows;
  const bool finite_grad = std::all_of(grad, grad + model.out_rows, [](T value) { return std::isfinite(value); });
  const auto units_at = [&](int64_t h0) { return model.hidden - h0 < strip ? model.hidden - h0 : strip; };

  initial_state(model, row, 0, model.hidden, padded, state_unit<A, T>(), checkpoints);
  for (int64_t j = 0; j < padded; ++j) delta[j] = T(0);
  for (int64_t c = 0; c + 1 < chunks.count; ++c) {
    const int64_t start = chunks.starts[c], count = chunks.starts[c + 1] - start;
    fill_positions(model, start, start + count, positions);
    const Change<T>* last = changes + find_changes(model, input, row, positions, count, changes);
    for (int64_t h0 = 0; h0 < padded; h0 += strip) {
      Strip<T> a = load_vectors(checkpoints + c * padded + h0);
      add_changes<S>(model, positions, changes, last, h0, units_at(h0), state_unit<A, T>(), a);
      store_vectors(a, checkpoints + (c + 1) * padded + h0);
      clear_padding(checkpoints + (c + 1) * padded + h0, units_at(h0));
    }
  }
  for (int64_t c = chunks.count - 1; c >= 0; --c) {
    const int64_t start = chunks.starts[c], count = chunks.starts[c + 1] - start;
    fill_positions(model, start, start + count, positions);
    const Change<T>* last = changes + find_changes(model, input, row, positions, count, changes);
    const bool finite = finite_grad && all_finite(model, positions, count, changes, last);
    for (int64_t k = 0; k < count * width; ++k) partial_x[k] = partial_scale[k] = T(0);
    for (int64_t h0 = 0; h0 < padded; h0 += strip) {
      input_chunk<S, T, A>(model, positions, changes, last, count, h0, units_at(h0), finite, grad,
                           checkpoints + c * padded + h0, delta + h0, states, activations,
                           output.grad_x ? partial_x : nullptr, output.grad_activation_scale ? partial_scale : nullptr);
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

int64_t nade_backward_input_scratch_bytes(const NadeModel& model, const NadeChunks& chunks) {
  Scratch scratch(nullptr);
  if (model.storage == ScalarType::float64) {
    const InputBuffers<double> buffers(model, chunks, scratch);
  } else {
    const InputBuffers<float> buffers(model, chunks, scratch);
  }
  return scratch.bytes_taken();
}

void nade_changes(const NadeModel& model, const NadeInput& input, const NadeChunks& chunks, const NadeChanges& found,
                  int64_t row_begin, int64_t row_end, void* scratch) {
  const auto fill = [&]<typename T>() {
    Scratch arrays(scratch);
    Position<T>* const positions = StepBuffers<T>(chunks, arrays).positions;
    for (int64_t row = row_begin; row < row_end; ++row) found.begins[row * (chunks.count + 1)] = 0;
    for (int64_t c = 0; c < chunks.count; ++c) {
      const int64_t start = chunks.starts[c], count = chunks.starts[c + 1] - start;
      fill_positions(model, start, start + count, positions);
      for (int64_t row = row_begin; row < row_end; ++row) {
        int64_t* begins = found.begins + row * (chunks.count + 1) + c;
        auto* changes = static_cast<Change<T>*>(found.changes) + row * model.variables + begins[0];
        begins[1] = begins[0] + find_changes(model, input, row, positions, count, changes);
      }
    }
  };
  model.storage == ScalarType::float64 ? fill.template operator()<double>() : fill.template operator()<float>();
}

void nade_backward_weights(const NadeModel& model, const NadeInput& input, const NadeBackward& output,
                           const NadeChunks& chunks, const NadeChanges& changes, int64_t strip, void* scratch) {
  dispatch_nade(model, [&]<typename S, typename T, Activation A>() {
    backward_weights<A>(model, input, output, chunks, changes, strip, weight_steps<S, T>(), scratch);
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
