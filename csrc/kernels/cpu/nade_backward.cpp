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

// One row through one chunk, forward then backward; grad_in and grad_out hold the chunk's rows by position.
template <bool Ragged, typename S, typename T, Activation A>
void weights_chunk(const NadeModel& model, const Position<T>* positions, const Addend<T>* addends, int64_t count,
                   int64_t h0, int64_t units, const T* grad, const T* checkpoint, T* delta, T* activations, T* grad_in, T* grad_out) {
  constexpr int64_t strip = strip_width<T>(), width = Vec<T>::size();
  const bool scaled = model.activation_scale != nullptr;
  const S* in_weight = static_cast<const S*>(model.in_weight) + h0;
  Vec<T> a[strip_vectors], h[strip_vectors];
  // Forward: one stored activation per distinct state, `activations` ends on the last.
  load_state(checkpoint, a);
  int64_t out_slots = 0;
  T* top = activations - strip;
  bool changed = true;
  for (int64_t p = 0; p < count; ++p) {
    if (changed || scaled) {
      if (scaled) {
        activate_strip<A, true>(a, positions[p].scale, h);
      } else {
        activate_strip<A, false>(a, T(1), h);
      }
      top += strip;
      store_state(h, top);
    }
    out_slots += positions[p].out_rows;
    changed = addends[p].category >= 0;
    if (changed) {
      add_row<Ragged>(in_weight + (positions[p].in_row + addends[p].category) * model.hidden,
                      state_unit<A, T>() * addends[p].x, units, a);
    }
  }
  // Backward. Within a run of zeros h does not change, so dh is gathered over the run and passed on once.
  Vec<T> d[strip_vectors], dh[strip_vectors];
  load_state(delta, d);
  for (int u = 0; u < strip_vectors; ++u) dh[u] = zero<T>();
  load_state(top, h);
  const auto pass_on = [&](T scale) {
    const Vec<T> s(scale);
    for (int u = 0; u < strip_vectors; ++u) {
      d[u] = at::vec::fmadd(dh[u] * s, derivative_from_value<A>(h[u]), d[u]);
      dh[u] = zero<T>();
    }
    top -= strip;
  };
  for (int64_t p = count - 1; p >= 0; --p) {
    const Position<T>& position = positions[p];
    if (p < count - 1 && (addends[p].category >= 0 || scaled)) {
      pass_on(positions[p + 1].scale);
      load_state(top, h);
    }
    if (addends[p].category >= 0) {
      T* row = grad_in + (position.in_slot + addends[p].category) * strip;
      const Vec<T> x(addends[p].x);
      for (int u = 0; u < strip_vectors; ++u) {
        at::vec::fmadd(x, d[u], Vec<T>::loadu(row + u * width)).store(row + u * width);
      }
    }
    grad_activation<Ragged, S>(model, position, grad, h0, units, dh);
    out_slots -= position.out_rows;
    for (int64_t k = 0; k < position.out_rows; ++k) {
      T* row = grad_out + (out_slots + k) * strip;
      const Vec<T> g(grad[position.out_row + k]);
      for (int u = 0; u < strip_vectors; ++u) {
        at::vec::fmadd(g, h[u], Vec<T>::loadu(row + u * width)).store(row + u * width);
      }
    }
  }
  pass_on(positions[0].scale);
  store_state(d, delta);
}

template <typename S, typename T, Activation A>
void backward_weights(const NadeModel& model, const NadeInput& input, const NadeBackward& output,
                      const NadeChunks& chunks, int64_t strip_index, void* scratch_memory) {
  constexpr int64_t strip = strip_width<T>();
  const int64_t batch = input.batch, hidden = model.hidden, h0 = strip_index * strip;
  const int64_t units = hidden - h0 < strip ? hidden - h0 : strip;
  const bool ragged = units < strip;
  Scratch scratch(scratch_memory);
  T* checkpoints = scratch.take<T>((chunks.count + 1) * batch * strip);
  T* delta = scratch.take<T>(batch * strip);
  T* buffers = scratch.take<T>((chunks.max_in_rows + chunks.max_out_rows + chunks.max_positions + 1) * strip);
  auto* positions = scratch.take<Position<T>>(chunks.max_positions);
  auto* addends = scratch.take<Addend<T>>(chunks.max_positions);
  T* grad_in = buffers;
  T* grad_out = grad_in + chunks.max_in_rows * strip;
  T* activations = grad_out + chunks.max_out_rows * strip;
  const auto checkpoint = [&](int64_t c, int64_t row) { return checkpoints + (c * batch + row) * strip; };

  for (int64_t row = 0; row < batch; ++row) {
    initial_state(model, row, h0, units, strip, state_unit<A, T>(), checkpoint(0, row));
    for (int64_t j = 0; j < strip; ++j) delta[row * strip + j] = T(0);
  }
  for (int64_t c = 0; c + 1 < chunks.count; ++c) {
    const int64_t start = chunks.starts[c], count = chunks.starts[c + 1] - start;
    fill_positions(model, start, start + count, positions);
    for (int64_t row = 0; row < batch; ++row) {
      fill_addends(model, input, row, positions, count, addends);
      Vec<T> a[strip_vectors];
      load_state(checkpoint(c, row), a);
      if (ragged) {
        advance_strip<true, S>(model, positions, addends, count, h0, units, state_unit<A, T>(), a);
      } else {
        advance_strip<false, S>(model, positions, addends, count, h0, units, state_unit<A, T>(), a);
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
    for (int64_t row = 0; row < batch; ++row) {
      fill_addends(model, input, row, positions, count, addends);
      const T* row_grad = grad + row * model.out_rows;
      if (ragged) {
        weights_chunk<true, S, T, A>(model, positions, addends, count, h0, units, row_grad, checkpoint(c, row),
                                     delta + row * strip, activations, grad_in, grad_out);
      } else {
        weights_chunk<false, S, T, A>(model, positions, addends, count, h0, units, row_grad, checkpoint(c, row),
                                      delta + row * strip, activations, grad_in, grad_out);
      }
    }
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

void nade_backward_weights(const NadeModel& model, const NadeInput& input, const NadeBackward& output,
                           const NadeChunks& chunks, int64_t strip, void* scratch) {
  dispatch_nade(model, [&]<typename S, typename T, Activation A>() {
    backward_weights<S, T, A>(model, input, output, chunks, strip, scratch);
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
