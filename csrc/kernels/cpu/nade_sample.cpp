// NADE sampling: Bernoulli variables, one after another, each row for itself.
#include "../philox.h"
#include "nade_strip.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

template <typename S, typename T>
T dot(const S* weight, const T* h, int64_t hidden) {
  constexpr int64_t width = Vec<T>::size(), strip = strip_width<T>();
  Vec<T> sums[strip_vectors];
  for (int u = 0; u < strip_vectors; ++u) sums[u] = zero<T>();
  int64_t j = 0;
  for (; j + strip <= hidden; j += strip) {
    for (int u = 0; u < strip_vectors; ++u) {
      sums[u] = at::vec::fmadd(Vec<T>::loadu(h + j + u * width), load(weight + j + u * width), sums[u]);
    }
  }
  if (j < hidden) {
    Vec<T> w[strip_vectors];
    load_strip<true, T>(weight + j, hidden - j, w);
    for (int u = 0; u < strip_vectors; ++u) sums[u] = at::vec::fmadd(Vec<T>::loadu(h + j + u * width), w[u], sums[u]);
  }
  return horizontal_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// a += x w and h = f(scale a), for one strip.
template <bool Ragged, typename S, typename T, Activation A>
void update_strip(const S* weight, int64_t units, T x, T scale, T* a, T* h) {
  Vec<T> state[strip_vectors], value[strip_vectors];
  load_state(a, state);
  if (weight) {
    Vec<T> w[strip_vectors];
    load_strip<Ragged, T>(weight, units, w);
    for (int u = 0; u < strip_vectors; ++u) state[u] = at::vec::fmadd(Vec<T>(x), w[u], state[u]);
    store_state(state, a);
  }
  activate_strip<A>(state, scale, value);
  store_state(value, h);
}

template <typename S, typename T, Activation A>
void update(const S* weight, int64_t hidden, T x, T scale, T* a, T* h) {
  constexpr int64_t strip = strip_width<T>();
  int64_t j = 0;
  for (; j + strip <= hidden; j += strip) {
    update_strip<false, S, T, A>(weight ? weight + j : nullptr, strip, x, scale, a + j, h + j);
  }
  if (j < hidden) update_strip<true, S, T, A>(weight ? weight + j : nullptr, hidden - j, x, scale, a + j, h + j);
}

template <typename S, typename T, Activation A>
void sample_row(const NadeModel& model, const NadeSample& sample, int64_t row, void* scratch_memory) {
  const int64_t padded = padded_hidden<T>(model), count = sample.stop - sample.start;
  Scratch scratch(scratch_memory);
  T* a = scratch.take<T>(padded);
  T* h = scratch.take<T>(padded);
  T* state = static_cast<T*>(sample.state) + row * model.hidden;
  T* values = static_cast<T*>(sample.values) + row * count;
  const T* given = sample.given ? static_cast<const T*>(sample.given) + row * model.variables : nullptr;
  const uint8_t* known = sample.known ? sample.known + row * model.variables : nullptr;
  const S* in_weight = static_cast<const S*>(model.in_weight);
  const S* out_weight = static_cast<const S*>(model.out_weight);
  const T* out_bias = static_cast<const T*>(model.out_bias);
  const T* scales = static_cast<const T*>(model.activation_scale);

  for (int64_t j = 0; j < padded; ++j) a[j] = j < model.hidden ? state[j] : T(0);
  double log_prob = 0;
  const S* pending = nullptr;  // the in_weight row of the last variable, not yet added
  T x = 0;
  bool changed = true;
  for (int64_t p = sample.start; p < sample.stop; ++p) {
    const int64_t variable = variable_at(model, p);
    if (changed || scales) {
      update<S, T, A>(pending, model.hidden, x, scales ? scales[variable] : T(1), a, h);
      pending = nullptr;
    }
    if (known && known[variable]) {
      x = given[variable];
    } else {
      const T logit = out_bias[variable] + dot(out_weight + variable * model.hidden, h, model.hidden);
      const T draw = T(1) / (T(1) + std::exp(-logit / static_cast<T>(sample.temperature)));
      const double uniform = philox_uniform(sample.seed, static_cast<uint64_t>(sample.first_index + row),
                                            static_cast<uint32_t>(variable), 0);
      x = uniform < static_cast<double>(draw) ? T(1) : T(0);
      log_prob += static_cast<double>(x) * static_cast<double>(logit) - softplus(static_cast<double>(logit));
    }
    values[p - sample.start] = x;
    changed = x != T(0);
    if (changed) pending = in_weight + variable * model.hidden;
  }
  if (pending) update<S, T, A>(pending, model.hidden, x, T(1), a, h);
  for (int64_t j = 0; j < model.hidden; ++j) state[j] = a[j];
  static_cast<double*>(sample.log_prob)[row] = log_prob;
}

}  // namespace

void nade_sample(const NadeModel& model, const NadeSample& sample, int64_t row_begin, int64_t row_end, void* scratch) {
  dispatch_nade(model, [&]<typename S, typename T, Activation A>() {
    for (int64_t row = row_begin; row < row_end; ++row) sample_row<S, T, A>(model, sample, row, scratch);
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
