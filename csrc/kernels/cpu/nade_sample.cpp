// NADE sampling, one variable after another. All rows of a call pass through a chunk of positions before the next
// chunk, so that its weights stay in the cache. Several rows are taken together, so that they share each read of a
// weight row. Positions are scored ahead as if zeros were drawn (exact, since a zero does not change the state): a
// single row jumps to the first nonzero value, and of rows that are taken together, one that changes scores the
// positions that follow again, in the pass that updates its units. A row's result does not depend on the rows drawn
// with it.
#include <array>

#include "draws.h"
#include "nade_form.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int rows_together = 4;
constexpr int positions_ahead = 4;
// As many positions of all rows_together rows as leave their sums in registers.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int positions_together = positions_ahead;
#else
constexpr int positions_together = 2;
#endif

// Rows of a weight, original or packed (PackedRows): strip j of row k begins at k * row_stride + j * strip_stride.
template <typename S>
struct WeightRows {
  const S* data;
  int64_t row_stride, strip_stride;
  int64_t units;   // in a row

  const S* row(int64_t index) const { return data + index * row_stride; }
};

// h . w for several rows of h and several weight rows. The order of a sum does not depend on how many are computed
// together or on where the weights are stored: lanes of one chain of vectors, then across.
template <int Count, int Weights, typename S, typename T>
class Dots {
 public:
  AR_FAST_INLINE Dots(const WeightRows<S>& weight, const int64_t* rows) : strip_stride_(weight.strip_stride) {
    AR_FAST_UNROLL
    for (int k = 0; k < Weights; ++k) w_[k] = weight.row(rows[k]);
    AR_FAST_UNROLL
    for (int i = 0; i < Count * Weights; ++i) sums_[i] = zero<T>();
  }
  // Adds a strip, of which value(r, u) is vector u of row r.
  template <bool Ragged, typename Value>
  AR_FAST_INLINE void add(int64_t strip, int64_t units, const Value& value) {
    const int64_t offset = strip * strip_stride_;
    AR_FAST_UNROLL
    for (int u = 0; u < strip_vectors; ++u) {
      Vec<T> values[Weights];
      AR_FAST_UNROLL
      for (int k = 0; k < Weights; ++k) values[k] = load_strip_vector<Ragged, T>(w_[k] + offset, u, units);
      AR_FAST_UNROLL
      for (int r = 0; r < Count; ++r) {
        const Vec<T> h = value(r, u);
        AR_FAST_UNROLL
        for (int k = 0; k < Weights; ++k) {
          sums_[r * Weights + k] = at::vec::fmadd(h, values[k], sums_[r * Weights + k]);
        }
      }
    }
  }
  AR_FAST_INLINE void store(T* result) const {
    sum_across(vectors<Count * Weights>([&](auto i) { return sums_[i]; }), result);
  }

 private:
  const S* w_[Weights];
  const int64_t strip_stride_;
  Vec<T> sums_[Count * Weights];
};

template <int Count, int Weights, typename S, typename T>
AR_FAST_INLINE void dot(const WeightRows<S>& weight, const std::array<int64_t, Weights>& rows, const T* h,
                        int64_t row_stride, T* result) {
  constexpr int64_t width = Vec<T>::size(), strip = strip_width<T>();
  Dots<Count, Weights, S, T> dots(weight, rows.data());
  const int64_t full = weight.units / strip;
  const auto add = [&]<bool Ragged>(int64_t j, int64_t units) __attribute__((always_inline)) {
    dots.template add<Ragged>(j, units, [&](int r, int u) __attribute__((always_inline)) {
      return Vec<T>::loadu(h + r * row_stride + j * strip + u * width);
    });
  };
  for (int64_t j = 0; j < full; ++j) add.template operator()<false>(j, strip);
  if (full * strip < weight.units) add.template operator()<true>(full, weight.units - full * strip);
  dots.store(result);
}

// f(scale a) of a strip. States are plain pre-activations, not in state_unit, so that a returned state continues bit for
// bit wherever the draw was cut. Bounded: |a| is at most odds_limit, where the limits would change no bit.
template <Activation A, bool Bounded, typename T>
AR_FAST_INLINE Strip<T> activate_strip(const Strip<T>& a, const Vec<T>& factor) {
  const Strip<T> t = vectors<strip_vectors>([&](auto u) { return a[u] * factor; });
  if constexpr (has_bounded_form<A, T>()) {
    // The first of two numbers gives way to a NaN.
    const Vec<T> most(T(126)), least(T(-126));
    const auto denominators = one_plus_exp2(Bounded ? t : vectors<strip_vectors>([&](auto u) {
      return at::vec::clamp(t[u], least, most);
    }));
    return vectors<strip_vectors>([&](auto u) { return Vec<T>(T(1)) / denominators[u]; });
  } else {
    return vectors<strip_vectors>([&](auto u) { return activate_state<A, T, decltype(u)::value % 2 == 0>(t[u]); });
  }
}

// a += x weight and h = f(scale a), for one strip of `units` units; `weight` null: nothing to add.
template <Activation A, bool Bounded, typename S, typename T>
AR_FAST_INLINE Strip<T> update_strip(const S* weight, int64_t units, T x, T scale, T* a, T* h) {
  Strip<T> state = load_vectors(a);
  if (weight) {
    const Strip<T> w = load_strip<T>(weight, units);
    // The same number: a product with one is exact, and the units that multiply are the busier ones.
    if (x == T(1)) state = vectors<strip_vectors>([&](auto u) { return state[u] + w[u]; });
    else add_scaled(w, x, state);
    store_vectors(state, a);
  }
  Strip<T> values = activate_strip<A, Bounded>(state, Vec<T>(state_unit<A, T>() * scale));
  store_vectors(values, h);
  if (units < strip_width<T>() && !(T(0) * x * scale == T(0))) {
    clear_padding(a, units);
    clear_padding(h, units);
    values = load_vectors(h);
  }
  return values;
}

// The same for all units; `row` is a row of in_weight, stored as S.
template <Activation A, typename S, typename T>
void update_in_place(const void* row, int64_t hidden, T x, T scale, T* a, T* h) {
  constexpr int64_t strip = strip_width<T>();
  const S* weight = static_cast<const S*>(row);
  for (int64_t j = 0; j < hidden; j += strip) {
    update_strip<A, false>(weight ? weight + j : nullptr, hidden - j, x, scale, a + j, h + j);
  }
}

// The same by a packed row, and the dot products of the new activations with `Count` rows of `out`.
template <Activation A, bool Bounded, int Count, typename T>
void update_and_score(const T* weight, int64_t weight_stride, int64_t hidden, T x, T* a, T* h, const WeightRows<T>& out,
                      const int64_t* rows, T* sums) {
  constexpr int64_t strip = strip_width<T>();
  Dots<1, Count, T, T> dots(out, rows);
  for (int64_t j = 0, s = 0; j < hidden; j += strip, ++s) {
    const Strip<T> values = update_strip<A, Bounded>(weight + s * weight_stride, Bounded ? strip : hidden - j, x, T(1),
                                                     a + j, h + j);
    dots.template add<false>(s, strip, [&](int, int u) __attribute__((always_inline)) { return values[u]; });
  }
  dots.store(sums);
}

// The functions that depend on the activation and on the type of the weights. They are called once for a row of
// in_weight or a chunk of positions, so the sampler is not compiled for each of them.
template <typename T>
struct Steps {
  void (*update_in_place)(const void* row, int64_t hidden, T x, T scale, T* a, T* h);
  // By whether |a| is bounded and how many rows are scored.
  void (*update_and_score[2][positions_together])(const T* weight, int64_t weight_stride, int64_t hidden, T x, T* a,
                                                  T* h, const WeightRows<T>& out, const int64_t* rows, T* sums);
  WeightSteps<T> weights;
  int64_t weight_bytes;   // of one element
};

template <Activation A, typename S, typename T>
constexpr Steps<T> steps() {
  Steps<T> steps{&update_in_place<A, S, T>, {}, weight_steps<S, T>(), sizeof(S)};
  unroll<positions_together>([&](auto count) {
    steps.update_and_score[0][count] = &update_and_score<A, false, count, T>;
    steps.update_and_score[1][count] = &update_and_score<A, has_bounded_form<A, T>(), count, T>;
  });
  return steps;
}

// What a row carries from one position to the next besides its state.
template <typename T>
struct Row {
  const void* pending;   // the in_weight row of the last variable, not yet added to a, or null
  T x;                   // its factor
  bool changed;          // h does not belong to a and pending
  T bound;               // |a| is not greater
  double log_prob;
};

template <typename T>
struct Buffers {
  T *a, *h;            // [rows, padded]
  Row<T>* rows;
  Position<T>* positions;
  PackedRows<T> out;   // used if enough rows share it
  PackedInput<T> in;   // the same
  T* thresholds;       // [rows_together, chunk_stride]
  T* logits;           // the same: of Bernoulli variables
  T* values;           // the same
  T* terms;            // the same: log p of each variable
  T* parameters;       // [rows_together, max_out_rows]
  T* weights;          // [max_out_rows]
  int64_t chunk_stride;

  Buffers(const NadeModel& model, const NadeChunks& chunks, int64_t row_count, Scratch& scratch)
      : out(row_count < rows_together ? 0 : chunks.max_out_rows, padded_hidden<T>(model) / strip_width<T>(), scratch),
        in(row_count < rows_together ? 0 : chunks.max_in_rows, padded_hidden<T>(model) / strip_width<T>(), scratch),
        chunk_stride((chunks.max_positions + 15) / 16 * 16) {
    const int64_t padded = padded_hidden<T>(model);
    a = scratch.take<T>(row_count * padded);
    h = scratch.take<T>(row_count * padded);
    rows = scratch.take<Row<T>>(row_count);
    positions = scratch.take<Position<T>>(chunks.max_positions);
    thresholds = scratch.take<T>(rows_together * chunk_stride);
    logits = scratch.take<T>(rows_together * chunk_stride);
    values = scratch.take<T>(rows_together * chunk_stride);
    terms = scratch.take<T>(rows_together * chunk_stride);
    parameters = scratch.take<T>(rows_together * chunks.max_out_rows);
    weights = scratch.take<T>(chunks.max_out_rows);
  }
};

// W is the type of `out`, the rows of out_weight: packed rows are indexed by slot.
template <typename W, typename T>
class Sampler {
 public:
  Sampler(const NadeModel& model, const NadeSample& sample, const Steps<T>& steps, Buffers<T>& buffers,
          const WeightRows<W>& out, bool packed)
      : model_(model), sample_(sample), draws_(sample.draws), steps_(steps), b_(buffers), out_(out), packed_(packed),
        padded_(padded_hidden<T>(model)), bernoulli_(sample.draws.head.kind == HeadKind::bernoulli) {}

  // Draws `count` positions of rows first ... first + Rows - 1 of the slice that starts at row `base` of the batch.
  template <int Rows>
  void chunk(int64_t base, int64_t first, int64_t start, int64_t count) {
    start_ = start;
    if (bernoulli_) {
      for (int r = 0; r < Rows; ++r) {
        bernoulli_thresholds(draws_, base + first + r, count, [&](int64_t p) { return start + p; },
                             b_.thresholds + r * b_.chunk_stride);
      }
    }
    // Whether a zero leaves everything unchanged.
    const bool skips = bernoulli_ && !sample_.gathers && !model_.activation_scale;
    int64_t p = 0;
    if constexpr (Rows == 1) {
      while (skips && p + positions_ahead <= count) p = look_ahead(base, first, p);
    } else {
      for (; skips && p + positions_together <= count; p += positions_together) steps_together<Rows>(base, first, p);
    }
    for (; p < count; ++p) step<Rows>(base, first, p);
    for (int r = 0; r < Rows; ++r) {
      const T* values = b_.values + r * b_.chunk_stride;
      T* terms = b_.terms + r * b_.chunk_stride;
      double sum = 0;
      if (bernoulli_) {
        add_bernoulli_log_prob(draws_, base + first + r, start, count, b_.logits + r * b_.chunk_stride, values, terms,
                               sum);
      } else {
        for (int64_t p = 0; p < count; ++p) sum += static_cast<double>(terms[p]);
      }
      b_.rows[first + r].log_prob += sum;
      T* out = draws_.values_of<T>(base + first + r) + start;
      for (int64_t p = 0; p < count; ++p) out[p] = values[p];
    }
  }

  // Adds what is pending.
  void finish(int64_t r) {
    const Row<T>& row = b_.rows[r];
    if (row.pending) update(r, T(1));
  }

 private:
  void update(int64_t r, T scale) {
    Row<T>& row = b_.rows[r];
    steps_.update_in_place(row.pending, model_.hidden, row.x, scale, b_.a + r * padded_, b_.h + r * padded_);
    row.pending = nullptr;
    row.changed = false;
  }

  void refresh(int64_t r, T scale) {
    if (b_.rows[r].changed || model_.activation_scale) update(r, scale);
  }

  void take(int64_t r, const Position<T>& position, T x) {
    Row<T>& row = b_.rows[r];
    const bool gathers = sample_.gathers || position.in_rows > 1;
    if (!gathers && x == T(0)) return;
    const Change<T> change = gathers ? gathered(position, 0, x) : Change<T>{0, 0, x};
    const int64_t category = gathers ? change.in_slot - position.in_slot : 0;
    const int64_t first = (position.in_row + category) * model_.hidden;
    row.pending = static_cast<const char*>(model_.in_weight) + first * steps_.weight_bytes;
    row.x = change.x;
    row.changed = true;
    row.bound = std::numeric_limits<T>::infinity();
  }

  // Adds x times the row of in_weight of a position, and scores `count` rows of out_weight.
  void change_and_score(int64_t r, int64_t p, T x, int count, const int64_t* rows, T* sums) {
    const Change<T> change{static_cast<int32_t>(p), static_cast<int32_t>(b_.positions[p].in_slot), x};
    T* const a = b_.a + r * padded_;
    b_.in.bring(&change, &change + 1);
    const bool bounded = stay_bounded(b_.in.reach(&change, &change + 1), a, padded_, T(1), b_.rows[r].bound);
    steps_.update_and_score[bounded][count](b_.in.strip(0) + change.in_slot * strip_width<T>(),
                                            b_.in.rows() * strip_width<T>(), model_.hidden, x, a, b_.h + r * padded_,
                                            out_, rows, sums);
  }

  // The known value, or the draw of a Bernoulli variable.
  T judge(int64_t row, int slot, int64_t p, T logit) {
    b_.logits[slot * b_.chunk_stride + p] = logit;
    const T x = bernoulli_value(draws_, row, start_ + p, b_.thresholds[slot * b_.chunk_stride + p], logit);
    b_.values[slot * b_.chunk_stride + p] = x;
    return x;
  }

  template <int Rows>
  void step(int64_t base, int64_t first, int64_t p) {
    const Position<T>& position = b_.positions[p];
    const int64_t out_row = row_of(position);
    const T* out_bias = static_cast<const T*>(model_.out_bias) + position.out_row;
    const T* h = b_.h + first * padded_;
    for (int r = 0; r < Rows; ++r) refresh(first + r, position.scale);
    if (bernoulli_) {
      T logits[Rows];
      dot<Rows, 1>(out_, {out_row}, h, padded_, logits);
      for (int r = 0; r < Rows; ++r) {
        take(first + r, position, judge(base + first + r, r, p, logits[r] + out_bias[0]));
      }
      return;
    }
    int64_t k = 0;
    for (; positions_together > 2 && k + 2 <= position.out_rows; k += 2) {
      T sums[Rows * 2];
      dot<Rows, 2>(out_, {out_row + k, out_row + k + 1}, h, padded_, sums);
      for (int r = 0; r < Rows; ++r) {
        T* parameters = b_.parameters + r * position.out_rows + k;
        parameters[0] = sums[2 * r] + out_bias[k];
        parameters[1] = sums[2 * r + 1] + out_bias[k + 1];
      }
    }
    for (; k < position.out_rows; ++k) {
      T sums[Rows];
      dot<Rows, 1>(out_, {out_row + k}, h, padded_, sums);
      for (int r = 0; r < Rows; ++r) b_.parameters[r * position.out_rows + k] = sums[r] + out_bias[k];
    }
    for (int r = 0; r < Rows; ++r) {
      const T x = draw_value(draws_, base + first + r, start_ + p, b_.parameters + r * position.out_rows,
                             position.out_rows, b_.weights, b_.terms[r * b_.chunk_stride + p]);
      b_.values[r * b_.chunk_stride + p] = x;
      take(first + r, position, x);
    }
  }

  // Scores several positions with the state of the first; a row whose value is not zero scores those after it again.
  template <int Rows>
  void steps_together(int64_t base, int64_t first, int64_t p) {
    constexpr int positions = positions_together;
    std::array<int64_t, positions> rows;
    T biases[positions], logits[Rows * positions];
    for (int k = 0; k < positions; ++k) {
      rows[k] = row_of(b_.positions[p + k]);
      biases[k] = out_bias(b_.positions[p + k]);
    }
    for (int r = 0; r < Rows; ++r) refresh(first + r, T(1));
    dot<Rows, positions>(out_, rows, b_.h + first * padded_, padded_, logits);
    for (int r = 0; r < Rows; ++r) {
      T* own = logits + r * positions;
      for (int k = 0; k < positions; ++k) {
        const T x = judge(base + first + r, r, p + k, own[k] + biases[k]);
        if (x != T(0)) change_and_score(first + r, p + k, x, positions - 1 - k, rows.data() + k + 1, own + k + 1);
      }
    }
  }

  // Scores positions_ahead positions with the state of the first; returns the position after the first nonzero value,
  // or after all of them.
  int64_t look_ahead(int64_t base, int64_t r, int64_t p) {
    refresh(r, T(1));
    std::array<int64_t, positions_ahead> rows;
    for (int k = 0; k < positions_ahead; ++k) rows[k] = row_of(b_.positions[p + k]);
    T logits[positions_ahead];
    dot<1, positions_ahead>(out_, rows, b_.h + r * padded_, padded_, logits);
    for (int k = 0; k < positions_ahead; ++k, ++p) {
      const T x = judge(base + r, 0, p, logits[k] + out_bias(b_.positions[p]));
      take(r, b_.positions[p], x);
      if (x != T(0)) return p + 1;
    }
    return p;
  }

  int64_t row_of(const Position<T>& position) const { return packed_ ? position.out_slot : position.out_row; }
  T out_bias(const Position<T>& position) const {
    return static_cast<const T*>(model_.out_bias)[position.out_row];
  }

  const NadeModel& model_;
  const NadeSample& sample_;
  const Draws& draws_;
  const Steps<T>& steps_;
  Buffers<T>& b_;
  const WeightRows<W> out_;
  const bool packed_;
  const int64_t padded_;
  const bool bernoulli_;
  int64_t start_ = 0;   // first position of the chunk
};

template <bool Packed, typename W, typename T>
void sample_rows(const NadeModel& model, const NadeSample& sample, const NadeChunks& chunks, int64_t row_begin,
                 int64_t row_end, const Steps<T>& steps, Buffers<T>& buffers, const WeightRows<W>& out) {
  const int64_t padded = padded_hidden<T>(model), hidden = model.hidden, count = row_end - row_begin;
  Sampler<W, T> sampler(model, sample, steps, buffers, out, Packed);
  T* states = static_cast<T*>(sample.state) + row_begin * hidden;
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t j = 0; j < padded; ++j) buffers.a[r * padded + j] = j < hidden ? states[r * hidden + j] : T(0);
    buffers.rows[r] = {nullptr, T(0), true, std::numeric_limits<T>::infinity(), 0.0};
  }
  for (int64_t c = 0; c < chunks.count; ++c) {
    const int64_t start = chunks.starts[c], positions = chunks.starts[c + 1] - start;
    fill_positions(model, start, start + positions, buffers.positions);
    int64_t r = 0;
    if constexpr (Packed) {
      steps.weights.pack_out_weight(model, buffers.positions, positions, 0, hidden, buffers.out);
      steps.weights.begin_input(model, buffers.positions, 0, hidden, false, buffers.in);
      for (; r + rows_together <= count; r += rows_together) {
        sampler.template chunk<rows_together>(row_begin, r, start, positions);
      }
    }
    for (; r < count; ++r) sampler.template chunk<1>(row_begin, r, start, positions);
  }
  for (int64_t r = 0; r < count; ++r) {
    sampler.finish(r);
    for (int64_t j = 0; j < hidden; ++j) states[r * hidden + j] = buffers.a[r * padded + j];
    sample.draws.log_prob[row_begin + r] = buffers.rows[r].log_prob;
  }
}

template <typename S, typename T>
void sample_slice(const NadeModel& model, const NadeSample& sample, const NadeChunks& chunks, int64_t row_begin,
                  int64_t row_end, const Steps<T>& steps, void* scratch) {
  const int64_t count = row_end - row_begin;
  Scratch arrays(scratch);
  Buffers<T> buffers(model, chunks, count, arrays);
  if (count >= rows_together) {
    const PackedRows<T>& out = buffers.out;
    const WeightRows<T> packed{out.data, strip_width<T>(), out.rows * strip_width<T>(), padded_hidden<T>(model)};
    sample_rows<true>(model, sample, chunks, row_begin, row_end, steps, buffers, packed);
  } else {
    const WeightRows<S> rows{static_cast<const S*>(model.out_weight), model.hidden, strip_width<T>(), model.hidden};
    sample_rows<false>(model, sample, chunks, row_begin, row_end, steps, buffers, rows);
  }
}

template <typename T>
int64_t scratch_bytes(const NadeModel& model, const NadeChunks& chunks, int64_t rows) {
  Scratch scratch(nullptr);
  const Buffers<T> buffers(model, chunks, rows, scratch);
  return scratch.bytes_taken();
}

}  // namespace

int64_t nade_sample_scratch_bytes(const NadeModel& model, const NadeChunks& chunks, int64_t rows) {
  return model.storage == ScalarType::float64 ? scratch_bytes<double>(model, chunks, rows)
                                              : scratch_bytes<float>(model, chunks, rows);
}

void nade_sample(const NadeModel& model, const NadeSample& sample, const NadeChunks& chunks, int64_t row_begin,
                 int64_t row_end, void* scratch) {
  dispatch_nade(model, [&]<typename S, typename T, Activation A>() {
    sample_slice<S, T>(model, sample, chunks, row_begin, row_end, steps<A, S, T>(), scratch);
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
