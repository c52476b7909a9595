// What the NADE kernels share: a row's steps through a chunk of positions, and strips of hidden units.
#pragma once

#include "nade_cpu.h"
#include "vec_math.h"

namespace ar_fast::CPU_CAPABILITY {

constexpr int strip_vectors = 4;

template <typename T>
constexpr int64_t strip_width() {
  return strip_vectors * Vec<T>::size();
}

template <typename T>
int64_t padded_hidden(const NadeModel& model) {
  const int64_t strip = strip_width<T>();
  return (model.hidden + strip - 1) / strip * strip;
}

// One position of one row.
template <typename S, typename T>
struct Step {
  int64_t variable;
  int64_t in_row;     // row of in_weight to add, or -1 where the input is zero
  T x;                // its factor
  int64_t out_row;    // first row of out_weight
  int64_t out_rows;
  T scale;
};

inline int64_t variable_at(const NadeModel& model, int64_t position) {
  return model.order ? model.order[position] : position;
}

inline int64_t first_in_row(const NadeModel& model, int64_t variable) {
  return model.in_offsets ? model.in_offsets[variable] : variable * (model.in_rows / model.variables);
}

inline int64_t first_out_row(const NadeModel& model, int64_t variable) {
  return model.out_offsets ? model.out_offsets[variable] : variable * (model.out_rows / model.variables);
}

inline int64_t count_out_rows(const NadeModel& model, int64_t variable) {
  return model.out_offsets ? model.out_offsets[variable + 1] - model.out_offsets[variable]
                           : model.out_rows / model.variables;
}

inline int64_t count_in_rows(const NadeModel& model, int64_t variable) {
  return model.in_offsets ? model.in_offsets[variable + 1] - model.in_offsets[variable]
                          : model.in_rows / model.variables;
}

template <typename S, typename T>
void fill_steps(const NadeModel& model, const NadeInput& input, int64_t row, int64_t start, int64_t stop,
                Step<S, T>* steps) {
  const T* scale = static_cast<const T*>(model.activation_scale);
  const T* x = input.x ? static_cast<const T*>(input.x) + row * model.variables : nullptr;
  const int64_t* categories = input.categories ? input.categories + row * model.variables : nullptr;
  for (int64_t p = start; p < stop; ++p) {
    const int64_t variable = variable_at(model, p);
    Step<S, T>& step = steps[p - start];
    step.variable = variable;
    step.x = x ? x[variable] : T(1);
    step.in_row = first_in_row(model, variable) + (categories ? categories[variable] : 0);
    if (step.x == T(0)) step.in_row = -1;
    step.out_row = first_out_row(model, variable);
    step.out_rows = count_out_rows(model, variable);
    step.scale = scale ? scale[variable] : T(1);
  }
}

// A strip of one row of a weight, from `data`; only the last strip of a weight is ragged, with `count` units.
template <bool Ragged, typename T, typename S>
inline void load_strip(const S* data, int64_t count, Vec<T> (&out)[strip_vectors]) {
  constexpr int64_t width = Vec<T>::size();
  for (int u = 0; u < strip_vectors; ++u) {
    if constexpr (!Ragged) {
      out[u] = load(data + u * width);
    } else {
      const int64_t rest = count - u * width;
      out[u] = rest >= width ? load(data + u * width) : rest > 0 ? load_partial(data + u * width, rest) : zero<T>();
    }
  }
}

// Writes a strip of T into storage S, rounding to nearest even.
template <typename S, typename T>
inline void store_strip(const T* data, int64_t count, S* out) {
  for (int64_t j = 0; j < count; ++j) from_compute(data[j], out[j]);
}

template <Activation A, typename T>
inline void activate_strip(const Vec<T> (&a)[strip_vectors], T scale, Vec<T> (&h)[strip_vectors]) {
  const Vec<T> s(scale);
  for (int u = 0; u < strip_vectors; ++u) h[u] = activate<A, T>(a[u] * s);
}

// a += x W over the steps of a chunk.
template <bool Ragged, typename S, typename T>
inline void advance_strip(const NadeModel& model, const Step<S, T>* steps, int64_t count, int64_t h0, int64_t units,
                          Vec<T> (&a)[strip_vectors]) {
  const S* in_weight = static_cast<const S*>(model.in_weight) + h0;
  for (int64_t p = 0; p < count; ++p) {
    if (steps[p].in_row < 0) continue;
    Vec<T> w[strip_vectors];
    load_strip<Ragged, T>(in_weight + steps[p].in_row * model.hidden, units, w);
    const Vec<T> x(steps[p].x);
    for (int u = 0; u < strip_vectors; ++u) a[u] = at::vec::fmadd(x, w[u], a[u]);
  }
}

template <typename T>
inline void load_state(const T* data, Vec<T> (&a)[strip_vectors]) {
  for (int u = 0; u < strip_vectors; ++u) a[u] = Vec<T>::loadu(data + u * Vec<T>::size());
}

template <typename T>
inline void store_state(const Vec<T> (&a)[strip_vectors], T* data) {
  for (int u = 0; u < strip_vectors; ++u) a[u].store(data + u * Vec<T>::size());
}

// in_bias of a row into a padded state.
template <typename T>
inline void initial_state(const NadeModel& model, int64_t row, int64_t h0, int64_t units, int64_t width, T* state) {
  const T* bias = static_cast<const T*>(model.in_bias) + row * model.in_bias_stride + h0;
  for (int64_t j = 0; j < units; ++j) state[j] = bias[j];
  for (int64_t j = units; j < width; ++j) state[j] = T(0);
}

// Cuts a caller's scratch into aligned arrays.
class Scratch {
 public:
  explicit Scratch(void* base) : next_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    char* here = next_;
    next_ += bytes<T>(count);
    return reinterpret_cast<T*>(here);
  }
  template <typename T>
  static int64_t bytes(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

 private:
  char* next_;
};

// Calls body.template operator()<S, T, A>() for the model's storage and activation.
template <typename Body>
inline void dispatch_nade(const NadeModel& model, const Body& body) {
  const auto with_activation = [&]<typename S, typename T>() {
    switch (model.activation) {
      case Activation::sigmoid: return body.template operator()<S, T, Activation::sigmoid>();
      case Activation::tanh: return body.template operator()<S, T, Activation::tanh>();
      case Activation::relu: return body.template operator()<S, T, Activation::relu>();
    }
  };
  switch (model.storage) {
    case ScalarType::float32: return with_activation.template operator()<float, float>();
    case ScalarType::bfloat16: return with_activation.template operator()<bfloat16, float>();
    case ScalarType::float16: return with_activation.template operator()<float16, float>();
    case ScalarType::float64: return with_activation.template operator()<double, double>();
  }
}

}  // namespace ar_fast::CPU_CAPABILITY
