// NADE sampling, one variable after another. All rows of a call pass through a chunk of positions before the next
// chunk, so that its weights stay in the cache. Several rows are taken together, so that they share each read of a
// weight row. Positions are scored ahead as if zeros were drawn: a single row jumps to the first nonzero value, and
// rows that are taken together score that position again (exact, since a zero does not change the state). A row's
// result does not depend on the rows drawn with it.
#include <array>

#include "draws.h"
#include "nade_strip.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int rows_together = 4;
constexpr int positions_ahead = 4;
// Whether all rows' activations can be multiplied by two weight rows at once: that takes 16 sums in registers.
#if defined(CPU_CAPABILITY_AVX512)
constexpr bool weights_in_pairs = true;
#else
constexpr bool weights_in_pairs = false;
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
// together or on where the weights are stored: lanes of two interleaved chains of vectors, then across.
template <int Count, int Weights, typename S, typename T>
AR_FAST_INLINE void dot(const WeightRows<S>& weight, const std::array<int64_t, Weights>& rows, const T* h,
                        int64_t row_stride, T* result) {
  constexpr int64_t width = Vec<T>::size(), strip = strip_width<T>();
  const S* w[Weights];
  Vec<T> sums[Count * Weights][2];
  AR_FAST_UNROLL
  for (int k = 0; k < Weights; ++k) w[k] = weight.row(rows[k]);
  AR_FAST_UNROLL
  for (int i = 0; i < Count * Weights; ++i) sums[i][0] = sums[i][1] = zero<T>();
  const auto add = [&]<bool Ragged>(int64_t j, int64_t units) __attribute__((always_inline)) {
    const int64_t offset = j * weight.strip_stride;
    AR_FAST_UNROLL
    for (int u = 0; u < strip_vectors; ++u) {
      Vec<T> values[Weights];
      AR_FAST_UNROLL
      for (int k = 0; k < Weights; ++k) values[k] = load_strip_vector<Ragged, T>(w[k] + offset, u, units);
      AR_FAST_UNROLL
      for (int r = 0; r < Count; ++r) {
        const Vec<T> value = Vec<T>::loadu(h + r * row_stride + j * strip + u * width);
        AR_FAST_UNROLL
        for (int k = 0; k < Weights; ++k) {
          Vec<T>& sum = sums[r * Weights + k][u % 2];
          sum = at::vec::fmadd(value, values[k], sum);
        }
      }
    }
  };
  const int64_t full = weight.units / strip;
  for (int64_t j = 0; j < full; ++j) add.template operator()<false>(j, strip);
  if (full * strip < weight.units) add.template operator()<true>(full, weight.units - full * strip);
  sum_across(vectors<Count * Weights>([&](auto i) { return sums[i][0] + sums[i][1]; }), result);
}

// a += x weight (weight null: nothing to add) and h = f(scale a), for one strip. States are plain pre-activations, not
// in state_unit, so that a returned state continues bit for bit wherever the draw was cut.
template <Activation A, typename S, typename T>
AR_FAST_INLINE void update_strip(const S* weight, int64_t units, T x, T scale, T* a, T* h) {
  Strip<T> state = load_vectors(a);
  if (weight) {
    add_scaled(load_strip<T>(weight, units), x, state);
    store_vectors(state, a);
  }
  const Vec<T> factor(state_unit<A, T>() * scale);
  store_vectors(vectors<strip_vectors>([&](auto u) {
    return activate_state<A, T, decltype(u)::value % 2 == 0>(state[u] * factor);
  }), h);
  if (units < strip_width<T>() && !(T(0) * x * scale == T(0))) {
    clear_padding(a, units);
    clear_padding(h, units);
  }
}

// The same for all units; `row` is a row of in_weight, stored as S.
template <Activation A, typename S, typename T>
void update(const void* row, int64_t hidden, T x, T scale, T* a, T* h) {
  constexpr int64_t strip = strip_width<T>();
  const S* weight = static_cast<const S*>(row);
  for (int64_t j = 0; j < hidden; j += strip) {
    update_strip<A>(weight ? weight + j : nullptr, hidden - j, x, scale, a + j, h + j);
  }
}

// The functions that depend on the activation and on the type of the weights. They are called once for a row of
// in_weight or a chunk of positions, so the sampler is not compiled for each of them.
template <typename T>
struct Steps {
  void (*update)(const void* row, int64_t hidden, T x, T scale, T* a, T* h);
  void (*pack_out_weight)(const NadeModel&, const Position<T>*, int64_t count, int64_t h0, int64_t units,
                          PackedRows<T>& out);
  int64_t weight_bytes;   // of one element
};

// What a row carries from one position to the next besides its state.
template <typename T>
struct Row {
  const void* pending;   // the in_weight row of the last variable, not yet added to a, or null
  T x;                   // its factor
  bool changed;          // h does not belong to a and pending
  double log_prob;
};

template <typename T>
struct Buffers {
  T *a, *h;            // [rows, padded]
  Row<T>* rows;
  Position<T>* positions;
  PackedRows<T> out;   // used if enough rows share it
  double* uniforms;    // [max_positions]
  T* thresholds;       // [rows_together, chunk_stride]
  T* logits;           // the same: of Bernoulli variables
  T* values;           // the same
  T* terms;            // the same: log p of each variable
  T* parameters;       // [rows_together, max_out_rows]
  T* weights;          // [max_out_rows]
  int64_t chunk_stride;

  Buffers(const NadeModel& model, const NadeChunks& chunks, int64_t row_count, Scratch& scratch)
      : out(row_count < rows_together ? 0 : chunks.max_out_rows, padded_hidden<T>(model) / strip_width<T>(), scratch),
        chunk_stride((chunks.max_positions + 15) / 16 * 16) {
    const int64_t padded = padded_hidden<T>(model);
    a = scratch.take<T>(row_count * padded);
    h = scratch.take<T>(row_count * padded);
    rows = scratch.take<Row<T>>(row_count);
    positions = scratch.take<Position<T>>(chunks.max_positions);
    uniforms = scratch.take<double>(chunk_stride);
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
        bernoulli_thresholds(draws_, base + first + r, count, [&](int64_t p) { return start + p; }, b_.uniforms,
                             b_.thresholds + r * b_.chunk_stride);
      }
    }
    // Whether a zero leaves everything unchanged.
    const bool skips = bernoulli_ && !sample_.gathers && !model_.activation_scale;
    for (int64_t p = 0; p < count;) {
      if (skips && Rows == 1 && p + positions_ahead <= count) {
        p = look_ahead(base, first, p);
      } else if (skips && weights_in_pairs && Rows > 1 && p + 2 <= count) {
        two_steps<Rows>(base, first, p);
        p += 2;
      } else {
        step<Rows>(base, first, p++);
      }
    }
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
    if (row.pending) update(row, r, T(1));
  }

 private:
  void update(const Row<T>& row, int64_t r, T scale) {
    steps_.update(row.pending, model_.hidden, row.x, scale, b_.a + r * padded_, b_.h + r * padded_);
  }

  void refresh(int64_t r, T scale) {
    Row<T>& row = b_.rows[r];
    if (!row.changed && !model_.activation_scale) return;
    update(row, r, scale);
    row.pending = nullptr;
    row.changed = false;
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
    for (; weights_in_pairs && k + 2 <= position.out_rows; k += 2) {
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

  // Scores two positions with the state of the first; a row whose first value is not zero scores the second again.
  template <int Rows>
  void two_steps(int64_t base, int64_t first, int64_t p) {
    const Position<T>*one = b_.positions + p, *two = one + 1;
    const T biases[2] = {out_bias(*one), out_bias(*two)};
    for (int r = 0; r < Rows; ++r) refresh(first + r, T(1));
    T logits[Rows * 2];
    dot<Rows, 2>(out_, {row_of(*one), row_of(*two)}, b_.h + first * padded_, padded_, logits);
    for (int r = 0; r < Rows; ++r) {
      const T x = judge(base + first + r, r, p, logits[2 * r] + biases[0]);
      if (x != T(0)) {
        take(first + r, *one, x);
        refresh(first + r, T(1));
        T again[1];
        dot<1, 1>(out_, {row_of(*two)}, b_.h + (first + r) * padded_, padded_, again);
        logits[2 * r + 1] = again[0];
      }
      take(first + r, *two, judge(base + first + r, r, p + 1, logits[2 * r + 1] + biases[1]));
    }
  }

  int64_t row_of(const Position<T>& position) const { return packed_ ? position.out_slot : position.out_row; }
  T out_bias(const Position<T>& position) const {
    return static_cast<const T*>(model_.out_bias)[position.out_row];
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
    buffers.rows[r] = {nullptr, T(0), true, 0.0};
  }
  for (int64_t c = 0; c < chunks.count; ++c) {
    const int64_t start = chunks.starts[c], positions = chunks.starts[c + 1] - start;
    fill_positions(model, start, start + positions, buffers.positions);
    int64_t r = 0;
    if constexpr (Packed) {
      steps.pack_out_weight(model, buffers.positions, positions, 0, hidden, buffers.out);
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
  const int64_t rows = row_end - row_begin;
  Scratch arrays(scratch);
  Buffers<T> buffers(model, chunks, rows, arrays);
  if (rows >= rows_together) {
    const PackedRows<T>& out = buffers.out;
    const WeightRows<T> packed{out.data, strip_width<T>(), out.rows * strip_width<T>(), padded_hidden<T>(model)};
    sample_rows<true>(model, sample, chunks, row_begin, row_end, steps, buffers, packed);
  } else {
    const WeightRows<S> in_place{static_cast<const S*>(model.out_weight), model.hidden, strip_width<T>(), model.hidden};
    sample_rows<false>(model, sample, chunks, row_begin, row_end, steps, buffers, in_place);
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
    const Steps<T> steps{&update<A, S, T>, &pack_out_weight<S, T>, sizeof(S)};
    sample_slice<S>(model, sample, chunks, row_begin, row_end, steps, scratch);
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
