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

// A position of the order: what does not depend on the row.
template <typename T>
struct Position {
  int64_t variable;
  int64_t in_row;     // first row of in_weight, of in_rows
  int64_t in_rows;
  int64_t in_slot;    // the same row, counted from the first of the chunk in the order of positions
  int64_t out_row;    // first row of out_weight, of out_rows
  int64_t out_rows;
  T scale;
};

// What a row adds to the state after a position.
template <typename T>
struct Addend {
  int64_t category;   // which of the variable's rows of in_weight, or -1 where the input is zero
  T x;                // its factor
};

// An addend that is not zero, and where.
template <typename T>
struct Change {
  int32_t position;   // counted from the first of its chunk
  int32_t category;
  T x;
};

inline int64_t variable_at(const NadeModel& model, int64_t position) {
  return model.order ? model.order[position] : position;
}

// The positions [start, stop), and how many rows of each weight they span.
struct ChunkRows {
  int64_t in_rows = 0, out_rows = 0;
};

template <typename T>
ChunkRows fill_positions(const NadeModel& model, int64_t start, int64_t stop, Position<T>* positions) {
  const T* scale = static_cast<const T*>(model.activation_scale);
  const int64_t in_rows = model.in_rows / model.variables, out_rows = model.out_rows / model.variables;
  ChunkRows total;
  for (int64_t p = start; p < stop; ++p) {
    const int64_t i = variable_at(model, p);
    Position<T>& position = positions[p - start];
    position.variable = i;
    position.in_row = model.in_offsets ? model.in_offsets[i] : i * in_rows;
    position.in_rows = model.in_offsets ? model.in_offsets[i + 1] - model.in_offsets[i] : in_rows;
    position.in_slot = total.in_rows;
    position.out_row = model.out_offsets ? model.out_offsets[i] : i * out_rows;
    position.out_rows = model.out_offsets ? model.out_offsets[i + 1] - model.out_offsets[i] : out_rows;
    position.scale = scale ? scale[i] : T(1);
    total.in_rows += position.in_rows;
    total.out_rows += position.out_rows;
  }
  return total;
}

template <typename T>
void fill_addends(const NadeModel& model, const NadeInput& input, int64_t row, const Position<T>* positions,
                  int64_t count, Addend<T>* addends) {
  if (input.categories) {
    const int64_t* categories = input.categories + row * model.variables;
    for (int64_t p = 0; p < count; ++p) addends[p] = {categories[positions[p].variable], T(1)};
  } else {
    const T* x = static_cast<const T*>(input.x) + row * model.variables;
    for (int64_t p = 0; p < count; ++p) {
      const T value = x[positions[p].variable];
      addends[p] = {value == T(0) ? -1 : 0, value};
    }
  }
}

// Vector u of a strip of one row of a weight; only the last strip of a weight is ragged, with `count` units.
template <bool Ragged, typename T, typename S>
AR_FAST_INLINE Vec<T> load_strip_vector(const S* data, int u, int64_t count) {
  constexpr int64_t width = Vec<T>::size();
  if constexpr (Ragged) {
    const int64_t rest = count - u * width;
    if (rest < width) return rest > 0 ? load_partial(data + u * width, rest) : zero<T>();
  }
  return load(data + u * width);
}

template <bool Ragged, typename T, typename S>
AR_FAST_INLINE void load_strip(const S* data, int64_t count, Vec<T> (&out)[strip_vectors]) {
  for (int u = 0; u < strip_vectors; ++u) out[u] = load_strip_vector<Ragged, T>(data, u, count);
}

// Writes a strip of T into storage S, rounding to nearest even.
template <typename S, typename T>
inline void store_strip(const T* data, int64_t count, S* out) {
  for (int64_t j = 0; j < count; ++j) from_compute(data[j], out[j]);
}

// h = f(pre-activation) from a state in state_unit.
template <Activation A, bool Scaled, typename T>
AR_FAST_INLINE void activate_strip(const Vec<T> (&a)[strip_vectors], T scale, Vec<T> (&h)[strip_vectors]) {
  const Vec<T> s(scale);
  for (int u = 0; u < strip_vectors; ++u) h[u] = activate_state<A, T>(Scaled ? a[u] * s : a[u]);
}

// a += x w for one row of in_weight.
template <bool Ragged, typename S, typename T>
AR_FAST_INLINE void add_row(const S* row, T factor, int64_t units, Vec<T> (&a)[strip_vectors]) {
  Vec<T> w[strip_vectors];
  load_strip<Ragged, T>(row, units, w);
  const Vec<T> x(factor);
  for (int u = 0; u < strip_vectors; ++u) a[u] = at::vec::fmadd(x, w[u], a[u]);
}

// a += x W over the positions of a chunk, x in units of `unit`.
template <bool Ragged, typename S, typename T>
AR_FAST_INLINE void advance_strip(const NadeModel& model, const Position<T>* positions, const Addend<T>* addends, int64_t count,
                          int64_t h0, int64_t units, T unit, Vec<T> (&a)[strip_vectors]) {
  const S* in_weight = static_cast<const S*>(model.in_weight) + h0;
  for (int64_t p = 0; p < count; ++p) {
    if (addends[p].category < 0) continue;
    add_row<Ragged>(in_weight + (positions[p].in_row + addends[p].category) * model.hidden, unit * addends[p].x, units,
                    a);
  }
}

template <typename T>
AR_FAST_INLINE void load_state(const T* data, Vec<T> (&a)[strip_vectors]) {
  for (int u = 0; u < strip_vectors; ++u) a[u] = Vec<T>::loadu(data + u * Vec<T>::size());
}

template <typename T>
AR_FAST_INLINE void store_state(const Vec<T> (&a)[strip_vectors], T* data) {
  for (int u = 0; u < strip_vectors; ++u) a[u].store(data + u * Vec<T>::size());
}

// in_bias of a row, times `unit`, into a padded state.
template <typename T>
inline void initial_state(const NadeModel& model, int64_t row, int64_t h0, int64_t units, int64_t width, T unit,
                          T* state) {
  const T* bias = static_cast<const T*>(model.in_bias) + row * model.in_bias_stride + h0;
  for (int64_t j = 0; j < units; ++j) state[j] = unit * bias[j];
  for (int64_t j = units; j < width; ++j) state[j] = T(0);
}

// Scratch of one call of nade_backward_weights; in nade_backward.cpp.
int64_t nade_backward_weights_scratch_bytes(const NadeModel& model, const NadeChunks& chunks, int64_t batch);

// Scratch of one call of nade_sample; in nade_sample.cpp.
int64_t nade_sample_scratch_bytes(const NadeModel& model, const NadeChunks& chunks, int64_t rows);

// Cuts a caller's scratch into aligned arrays. With a null base it only counts.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    T* here = base_ ? reinterpret_cast<T*>(base_ + taken_) : nullptr;
    taken_ += bytes<T>(count);
    return here;
  }
  int64_t bytes_taken() const { return taken_; }
  template <typename T>
  static int64_t bytes(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

 private:
  char* base_;
  int64_t taken_ = 0;
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
