// What the NADE kernels share: a row's steps through a chunk of positions, and strips of hidden units.
#pragma once

#include <array>
#include <cmath>
#include <limits>

#include "nade_cpu.h"
#include "scratch.h"
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

// A position of the order: what does not depend on the row. Slots count the rows of a weight from the first of the
// chunk, in the order of positions.
template <typename T>
struct Position {
  int64_t variable;
  int64_t in_row;     // first row of in_weight, of in_rows
  int64_t in_rows;
  int64_t in_slot;
  int64_t out_row;    // first row of out_weight, of out_rows
  int64_t out_rows;
  int64_t out_slot;
  T scale;
};

// An input of a row that is not zero: what it adds to the state after a position.
template <typename T>
struct Change {
  int32_t position;   // counted from the first of its chunk
  int32_t in_slot;    // the row of in_weight
  T x;                // its factor
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
    position.out_slot = total.out_rows;
    position.scale = scale ? scale[i] : T(1);
    total.in_rows += position.in_rows;
    total.out_rows += position.out_rows;
  }
  return total;
}

// By a value that gathers one of the rows of its position.
template <typename T, typename Value>
Change<T> gathered(const Position<T>& position, int32_t index, Value value) {
  const bool category = is_category(value, position.in_rows);
  return {index, static_cast<int32_t>(position.in_slot + (category ? static_cast<int64_t>(value) : 0)),
          category ? T(1) : std::numeric_limits<T>::quiet_NaN()};
}

// Writes the changes of a row in a chunk of `count` positions, and returns how many; there is room for `count`.
template <typename T>
int64_t find_changes(const NadeModel& model, const NadeInput& input, int64_t row, const Position<T>* positions,
                     int64_t count, Change<T>* changes) {
  if (input.categories) {
    const int64_t* categories = input.categories + row * model.variables;
    for (int64_t p = 0; p < count; ++p) {
      changes[p] = gathered(positions[p], static_cast<int32_t>(p), categories[positions[p].variable]);
    }
    return count;
  }
  const T* x = static_cast<const T*>(input.x) + row * model.variables;
  int64_t found = 0;
  if (model.in_offsets) {
    for (int64_t p = 0; p < count; ++p) {
      const bool gathers = positions[p].in_rows > 1;
      const T value = x[positions[p].variable];
      changes[found] = gathers ? gathered(positions[p], static_cast<int32_t>(p), value)
                               : Change<T>{static_cast<int32_t>(p), static_cast<int32_t>(positions[p].in_slot), value};
      found += gathers || value != T(0);
    }
    return found;
  }
  for (int64_t p = 0; p < count; ++p) {
    const T value = x[positions[p].variable];
    // Written in any case, kept where the input is not zero: no branch to guess.
    changes[found] = {static_cast<int32_t>(p), static_cast<int32_t>(positions[p].in_slot), value};
    found += value != T(0);
  }
  return found;
}

// Vector u of a strip of one row of a weight; only the last strip of a weight is ragged, with `units` units.
template <bool Ragged, typename T, typename S>
AR_FAST_INLINE Vec<T> load_strip_vector(const S* data, int u, int64_t units) {
  constexpr int64_t width = Vec<T>::size();
  if constexpr (Ragged) {
    const int64_t rest = units - u * width;
    if (rest < width) return rest > 0 ? load_partial(data + u * width, rest) : zero<T>();
  }
  return load(data + u * width);
}

// Rows of a weight in a chunk, as T: strip after strip, so that a strip of the chunk lies together and no load crosses
// a cache line, and zeros behind the last unit.
template <typename T>
struct PackedRows {
  T* data;            // [strips, rows, strip]
  int64_t rows, strips;

  PackedRows(int64_t rows, int64_t strips, Scratch& scratch)
      : data(scratch.take<T>(strips * rows * strip_width<T>())), rows(rows), strips(strips) {}

  const T* strip(int64_t index) const { return data + index * rows * strip_width<T>(); }

  // Puts map(vector) of a row's `units` into a slot.
  template <typename S, typename Map>
  AR_FAST_INLINE void put(int64_t slot, const S* weight, int64_t units, const Map& map) {
    constexpr int64_t strip = strip_width<T>(), width = Vec<T>::size();
    for (int64_t s = 0; s < strips; ++s) {
      T* out = data + (s * rows + slot) * strip;
      const S* in = weight + s * strip;
      const int64_t rest = units - s * strip;
      if (rest >= strip) {
        unroll<strip_vectors>([&](auto u) { map(load(in + u * width)).store(out + u * width); });
      } else {
        for (int u = 0; u < strip_vectors; ++u) map(load_strip_vector<true, T>(in, u, rest)).store(out + u * width);
      }
    }
  }
};

// out_weight of a chunk, `units` of it from unit h0 on.
template <typename S, typename T>
void pack_out_weight(const NadeModel& model, const Position<T>* positions, int64_t count, int64_t h0, int64_t units,
                     PackedRows<T>& out) {
  const S* weight = static_cast<const S*>(model.out_weight) + h0;
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t k = 0; k < positions[p].out_rows; ++k) {
      out.put(positions[p].out_slot + k, weight + (positions[p].out_row + k) * model.hidden, units,
              [](const Vec<T>& w) { return w; });
    }
  }
}

// A strip in registers.
template <typename T>
using Strip = std::array<Vec<T>, strip_vectors>;

template <typename T, typename S>
AR_FAST_INLINE Strip<T> load_strip(const S* data, int64_t units) {
  if (units >= strip_width<T>()) {
    return vectors<strip_vectors>([&](auto u) { return load_strip_vector<false, T>(data, u, units); });
  }
  return vectors<strip_vectors>([&](auto u) { return load_strip_vector<true, T>(data, u, units); });
}

template <int N = strip_vectors, typename T>
AR_FAST_INLINE std::array<Vec<T>, N> load_vectors(const T* data) {
  return vectors<N>([&](auto u) { return Vec<T>::loadu(data + u * Vec<T>::size()); });
}

template <typename T, size_t N>
AR_FAST_INLINE void store_vectors(const std::array<Vec<T>, N>& a, T* data) {
  unroll<N>([&](auto u) { a[u].store(data + u * Vec<T>::size()); });
}

// A strip without what lies beyond its units. Weights are zero there, so finite numbers leave it zero; an infinite one
// makes NaN of it, which would reach the units in a sum across the strip.
template <typename T>
void clear_padding(T* strip, int64_t units) {
  for (int64_t j = units; j < strip_width<T>(); ++j) strip[j] = T(0);
}
template <typename T>
Strip<T> without_padding(const Strip<T>& a, int64_t units) {
  T values[strip_width<T>()];
  store_vectors(a, values);
  clear_padding(values, units);
  return load_vectors(values);
}

// Writes a strip of T into storage S, rounding to nearest even.
template <typename S, typename T>
inline void store_strip(const T* data, int64_t count, S* out) {
  for (int64_t j = 0; j < count; ++j) from_compute(data[j], out[j]);
}

// a += x w
template <typename T, size_t N>
AR_FAST_INLINE void add_scaled(const std::array<Vec<T>, N>& w, T factor, std::array<Vec<T>, N>& a) {
  const Vec<T> x(factor);
  unroll<N>([&](auto u) { a[u] = at::vec::fmadd(x, w[u], a[u]); });
}

// a += x W over some changes, straight from in_weight, x in units of `unit`.
template <typename S, typename T>
AR_FAST_INLINE void add_changes(const NadeModel& model, const Position<T>* positions, const Change<T>* change,
                                const Change<T>* last, int64_t h0, int64_t units, T unit, Strip<T>& a) {
  const S* in_weight = static_cast<const S*>(model.in_weight) + h0;
  for (; change != last; ++change) {
    const Position<T>& position = positions[change->position];
    const S* row = in_weight + (position.in_row + change->in_slot - position.in_slot) * model.hidden;
    add_scaled(load_strip<T>(row, units), unit * change->x, a);
  }
}

// in_bias of a row, times `unit`, into a padded state.
template <typename T>
inline void initial_state(const NadeModel& model, int64_t row, int64_t h0, int64_t units, int64_t width, T unit,
                          T* state) {
  const T* bias = static_cast<const T*>(model.in_bias) + row * model.in_bias_stride + h0;
  for (int64_t j = 0; j < units; ++j) state[j] = unit * bias[j];
  for (int64_t j = units; j < width; ++j) state[j] = T(0);
}

// Whether a row's changes and the scales of its positions are finite.
template <typename T>
bool all_finite(const NadeModel& model, const Position<T>* positions, int64_t count, const Change<T>* change,
                const Change<T>* last) {
  bool finite = true;
  for (int64_t p = 0; model.activation_scale && p < count; ++p) finite &= std::isfinite(positions[p].scale);
  for (; change != last; ++change) finite &= std::isfinite(change->x);
  return finite;
}

// A chunk's positions, and a row's changes in it.
template <typename T>
struct StepBuffers {
  Position<T>* positions;   // [max_positions]
  Change<T>* changes;       // [max_positions]

  StepBuffers(const NadeChunks& chunks, Scratch& scratch)
      : positions(scratch.take<Position<T>>(chunks.max_positions)),
        changes(scratch.take<Change<T>>(chunks.max_positions)) {}
};

// Scratch of one call of nade_backward_weights, and of one of nade_backward_input; in nade_backward.cpp.
int64_t nade_backward_weights_scratch_bytes(const NadeModel& model, const NadeChunks& chunks, int64_t batch);
int64_t nade_backward_input_scratch_bytes(const NadeModel& model, const NadeChunks& chunks);

// Scratch of one call of nade_sample; in nade_sample.cpp.
int64_t nade_sample_scratch_bytes(const NadeModel& model, const NadeChunks& chunks, int64_t rows);

// Calls body.template operator()<S, T, A>() for the model's storage and activation.
template <typename Model, typename Body>
inline void dispatch_nade(const Model& model, const Body& body) {
  const auto with_activation = [&]<typename S, typename T>() {
    switch (model.activation) {
      case Activation::sigmoid: return body.template operator()<S, T, Activation::sigmoid>();
      case Activation::tanh: return body.template operator()<S, T, Activation::tanh>();
      default: return body.template operator()<S, T, Activation::relu>();
    }
  };
  dispatch_storage(model.storage, with_activation);
}

}  // namespace ar_fast::CPU_CAPABILITY
