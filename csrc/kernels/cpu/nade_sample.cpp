// NADE sampling: Bernoulli variables, one after another. A few rows go through the positions together, so that a
// weight row is fetched once for all of them; each row's own arithmetic is the same in any company.
#include "../philox.h"
#include "nade_strip.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int rows_together = 4;
// Logits of drawn variables wait here until their log-likelihood is summed, a vector at a time.
constexpr int64_t log_prob_block = 256;

// h . weight for several rows. The order of a row's sum: lanes of 4 interleaved vectors, then across.
template <int Rows, typename S, typename T>
void dot(const S* weight, const T* h, int64_t row_stride, int64_t hidden, T* result) {
  constexpr int64_t width = Vec<T>::size(), strip = strip_width<T>();
  Vec<T> sums[Rows][strip_vectors], w[strip_vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int u = 0; u < strip_vectors; ++u) sums[r][u] = zero<T>();
  }
  const auto add = [&](int64_t j) {
    for (int r = 0; r < Rows; ++r) {
      const T* row = h + r * row_stride + j;
      for (int u = 0; u < strip_vectors; ++u) {
        sums[r][u] = at::vec::fmadd(Vec<T>::loadu(row + u * width), w[u], sums[r][u]);
      }
    }
  };
  int64_t j = 0;
  for (; j + strip <= hidden; j += strip) {
    load_strip<false, T>(weight + j, strip, w);
    add(j);
  }
  if (j < hidden) {
    load_strip<true, T>(weight + j, hidden - j, w);
    add(j);
  }
  for (int r = 0; r < Rows; ++r) {
    result[r] = horizontal_sum((sums[r][0] + sums[r][1]) + (sums[r][2] + sums[r][3]));
  }
}

// a += x weight (weight null: nothing to add) and h = f(scale a).
template <bool Ragged, Activation A, typename S, typename T>
void update_strip(const S* weight, int64_t units, T x, T scale, T* a, T* h) {
  Vec<T> state[strip_vectors], value[strip_vectors];
  load_state(a, state);
  if (weight) {
    add_row<Ragged>(weight, x, units, state);
    store_state(state, a);
  }
  // Plain pre-activations, not in state_unit: a returned state goes on bit for bit wherever it was cut.
  for (int u = 0; u < strip_vectors; ++u) value[u] = activate<A, T>(state[u] * Vec<T>(scale));
  store_state(value, h);
}

template <Activation A, typename S, typename T>
void update(const S* weight, int64_t hidden, T x, T scale, T* a, T* h) {
  constexpr int64_t strip = strip_width<T>();
  int64_t j = 0;
  for (; j + strip <= hidden; j += strip) {
    update_strip<false, A>(weight ? weight + j : nullptr, strip, x, scale, a + j, h + j);
  }
  if (j < hidden) update_strip<true, A>(weight ? weight + j : nullptr, hidden - j, x, scale, a + j, h + j);
}

template <typename T>
double sum_log_prob(const T* logits, const T* values, int64_t count) {
  constexpr int64_t width = Vec<T>::size();
  double sum = 0;
  for (int64_t j = 0; j < count; j += width) {
    T terms[Vec<T>::size()];
    const Vec<T> l = Vec<T>::loadu(logits + j);
    (Vec<T>::loadu(values + j) * l - softplus<T>(l)).store(terms);
    for (int64_t k = 0; k < width && j + k < count; ++k) sum += static_cast<double>(terms[k]);
  }
  return sum;
}

template <int Rows, typename S, typename T, Activation A>
void sample_rows(const NadeModel& model, const NadeSample& sample, int64_t first_row, void* scratch_memory) {
  constexpr int64_t width = Vec<T>::size();
  const int64_t padded = padded_hidden<T>(model), hidden = model.hidden, count = sample.stop - sample.start;
  Scratch scratch(scratch_memory);
  T* a = scratch.take<T>(Rows * padded);
  T* h = scratch.take<T>(Rows * padded);
  T* drawn_logits = scratch.take<T>(Rows * (log_prob_block + width));
  T* drawn_values = scratch.take<T>(Rows * (log_prob_block + width));
  const S* in_weight = static_cast<const S*>(model.in_weight);
  const S* out_weight = static_cast<const S*>(model.out_weight);
  const T* out_bias = static_cast<const T*>(model.out_bias);
  const T* scales = static_cast<const T*>(model.activation_scale);
  const Vec<T> temperature(static_cast<T>(sample.temperature));

  for (int r = 0; r < Rows; ++r) {
    const T* state = static_cast<const T*>(sample.state) + (first_row + r) * hidden;
    for (int64_t j = 0; j < padded; ++j) a[r * padded + j] = j < hidden ? state[j] : T(0);
  }
  double log_prob[Rows] = {};
  int64_t drawn[Rows] = {};
  const S* pending[Rows] = {};  // the in_weight row of the last variable, not yet added
  bool changed[Rows];
  T x[Rows] = {};
  for (int r = 0; r < Rows; ++r) changed[r] = true;
  const auto flush = [&](int r) {
    const int64_t offset = r * (log_prob_block + width);
    log_prob[r] += sum_log_prob(drawn_logits + offset, drawn_values + offset, drawn[r]);
    drawn[r] = 0;
  };

  for (int64_t p = sample.start; p < sample.stop; ++p) {
    const int64_t variable = variable_at(model, p);
    for (int r = 0; r < Rows; ++r) {
      if (!changed[r] && !scales) continue;
      update<A>(pending[r], hidden, x[r], scales ? scales[variable] : T(1), a + r * padded, h + r * padded);
      pending[r] = nullptr;
    }
    T logits[width] = {}, draws[width];
    dot<Rows>(out_weight + variable * hidden, h, padded, hidden, logits);
    for (int r = 0; r < Rows; ++r) logits[r] += out_bias[variable];
    sigmoid<T>(Vec<T>::loadu(logits) / temperature).store(draws);
    for (int r = 0; r < Rows; ++r) {
      const int64_t row = first_row + r, index = row * model.variables + variable;
      if (sample.known && sample.known[index]) {
        x[r] = static_cast<const T*>(sample.given)[index];
      } else {
        const double uniform = philox_uniform(sample.seed, static_cast<uint64_t>(sample.first_index + row),
                                              static_cast<uint32_t>(variable), 0);
        x[r] = uniform < static_cast<double>(draws[r]) ? T(1) : T(0);
        const int64_t slot = r * (log_prob_block + width) + drawn[r]++;
        drawn_logits[slot] = logits[r];
        drawn_values[slot] = x[r];
        if (drawn[r] == log_prob_block) flush(r);
      }
      static_cast<T*>(sample.values)[row * count + p - sample.start] = x[r];
      changed[r] = x[r] != T(0);
      if (changed[r]) pending[r] = in_weight + variable * hidden;
    }
  }
  for (int r = 0; r < Rows; ++r) {
    if (pending[r]) update<A>(pending[r], hidden, x[r], T(1), a + r * padded, h + r * padded);
    flush(r);
    T* state = static_cast<T*>(sample.state) + (first_row + r) * hidden;
    for (int64_t j = 0; j < hidden; ++j) state[j] = a[r * padded + j];
    static_cast<double*>(sample.log_prob)[first_row + r] = log_prob[r];
  }
}

template <typename T>
int64_t scratch_bytes(const NadeModel& model) {
  return 2 * Scratch::bytes<T>(rows_together * padded_hidden<T>(model)) +
         2 * Scratch::bytes<T>(rows_together * (log_prob_block + Vec<T>::size()));
}

}  // namespace

int64_t nade_sample_scratch_bytes(const NadeModel& model) {
  return model.storage == ScalarType::float64 ? scratch_bytes<double>(model) : scratch_bytes<float>(model);
}

void nade_sample(const NadeModel& model, const NadeSample& sample, int64_t row_begin, int64_t row_end, void* scratch) {
  dispatch_nade(model, [&]<typename S, typename T, Activation A>() {
    int64_t row = row_begin;
    for (; row + rows_together <= row_end; row += rows_together) {
      sample_rows<rows_together, S, T, A>(model, sample, row, scratch);
    }
    for (; row < row_end; ++row) sample_rows<1, S, T, A>(model, sample, row, scratch);
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
