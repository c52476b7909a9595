// ARMLP sampling: each network is evaluated once, when the variables before it are known, from those that are not zero.
// All rows of a call pass through one network before the next one, so that its weights stay in the cache.
#include "armlp_cpu.h"

#include "draws.h"
#include "scratch.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

// Positions whose uniform numbers are drawn, and whose log p is computed, together.
constexpr int64_t block_positions = 32;
constexpr int strip_vectors = 4;

// A nonzero value: its input row and its factor.
template <typename T>
struct Input {
  int64_t row;
  T x;
};

template <typename T>
struct Buffers {
  Input<T>* inputs;             // [rows, D]
  int64_t* input_counts;        // [rows]
  T *thresholds, *logits;       // [rows, block]
  T* terms;                     // [block]
  T *hidden;                    // [H]
  T *parameters, *weights;      // [most_parameters]

  Buffers(const ArmlpSample& sample, int64_t most_parameters, int64_t rows, Scratch& scratch) {
    inputs = scratch.take<Input<T>>(rows * sample.draws.variables);
    input_counts = scratch.take<int64_t>(rows);
    thresholds = scratch.take<T>(rows * block_positions);
    logits = scratch.take<T>(rows * block_positions);
    terms = scratch.take<T>(block_positions);
    hidden = scratch.take<T>(sample.hidden);
    parameters = scratch.take<T>(most_parameters);
    weights = scratch.take<T>(most_parameters);
  }
};

template <typename T>
AR_FAST_INLINE Vec<T> activated(Activation activation, const Vec<T>& a) {
  switch (activation) {
    case Activation::sigmoid: return activate<Activation::sigmoid, T>(a);
    case Activation::tanh: return activate<Activation::tanh, T>(a);
    default: return activate<Activation::relu, T>(a);
  }
}

// Several hidden units of a network: `Vectors` vectors, or without Full the first `units` lanes of one vector.
template <int Vectors, bool Full, typename S, typename T>
AR_FAST_INLINE void hidden_strip(Activation activation, const S* weight, int64_t stride, const T* bias,
                                 const Input<T>* inputs, int64_t count, int64_t units, T* hidden) {
  constexpr int64_t width = Vec<T>::size();
  Vec<T> sums[2][Vectors];
  AR_FAST_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    sums[0][v] = Full ? Vec<T>::loadu(bias + v * width) : load_partial(bias, units);
    sums[1][v] = zero<T>();
  }
  const auto add = [&](int64_t i, Vec<T>(&to)[Vectors]) __attribute__((always_inline)) {
    const Vec<T> x(inputs[i].x);
    const S* row = weight + inputs[i].row * stride;
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      to[v] = at::vec::fmadd(x, Full ? load(row + v * width) : load_partial(row, units), to[v]);
    }
  };
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    add(i, sums[0]);
    add(i + 1, sums[1]);
  }
  if (i < count) add(i, sums[0]);
  AR_FAST_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    const Vec<T> h = activated<T>(activation, sums[0][v] + sums[1][v]);
    store_lanes<T>(h, hidden + v * width, Full ? width : units);
  }
}

template <typename S, typename T>
inline T dot(const S* weight, const T* hidden, int64_t count) {
  constexpr int64_t width = Vec<T>::size();
  Vec<T> sum = zero<T>();
  for_lanes<T>(count, [&](int64_t k, int64_t n) {
    const Vec<T> w = n == width ? load(weight + k) : load_partial(weight + k, n);
    sum = at::vec::fmadd(w, load_lanes(hidden + k, n), sum);
  });
  return horizontal_sum(sum);
}

template <typename S, typename T>
class Sampler {
 public:
  Sampler(const ArmlpSample& sample, int64_t most_parameters, int64_t row_begin, int64_t row_end, Scratch& scratch)
      : sample_(sample), draws_(sample.draws), row_begin_(row_begin), rows_(row_end - row_begin),
        bernoulli_(draws_.head.kind == HeadKind::bernoulli), gathers_(draws_.head.kind == HeadKind::categorical),
        b_(sample, most_parameters, rows_, scratch) {}

  void run() {
    double* log_prob = draws_.log_prob + row_begin_;
    for (int64_t r = 0; r < rows_; ++r) {
      log_prob[r] = 0;
      b_.input_counts[r] = 0;
      for (int64_t p = 0; p < draws_.start; ++p) add_input(r, p, state(r)[p]);
    }
    for (int64_t start = draws_.start; start < draws_.stop; start += block_positions) {
      const int64_t stop = std::min(start + block_positions, draws_.stop);
      for (int64_t r = 0; bernoulli_ && r < rows_; ++r) {
        bernoulli_thresholds(draws_, row_begin_ + r, stop - start, [&](int64_t k) { return start + k; },
                             b_.thresholds + r * block_positions);
      }
      for (int64_t p = start; p < stop; ++p) {
        for (int64_t r = 0; r < rows_; ++r) {
          const T* known = draws_.known_value<T>(row_begin_ + r, p);
          const T x = known ? *known : bernoulli_ ? draw_bernoulli(r, p, p - start) : draw(r, p, log_prob[r]);
          state(r)[p] = x;
          add_input(r, p, x);
        }
      }
      for (int64_t r = 0; r < rows_; ++r) {
        const T* x = state(r) + start;
        if (bernoulli_) {
          add_bernoulli_log_prob(draws_, row_begin_ + r, start, stop - start, b_.logits + r * block_positions, x,
                                 b_.terms, log_prob[r]);
        }
        T* out = draws_.values_of<T>(row_begin_ + r);
        for (int64_t p = start; p < stop; ++p) out[p] = x[p - start];
      }
    }
  }

 private:
  int64_t first_parameter(int64_t position) const {
    return sample_.offsets ? sample_.offsets[position] : position * (sample_.out_rows / draws_.variables);
  }
  bool gathers(int64_t position) const {
    return gathers_ || (sample_.in_offsets && sample_.in_offsets[position + 1] - sample_.in_offsets[position] > 1);
  }
  int64_t first_input(int64_t position) const {
    return sample_.in_offsets ? sample_.in_offsets[position] : gathers_ ? first_parameter(position) : position;
  }
  T* state(int64_t r) const { return static_cast<T*>(sample_.state) + (row_begin_ + r) * draws_.variables; }

  void add_input(int64_t r, int64_t position, T x) {
    const bool gathered = gathers(position);
    if (!gathered && x == T(0)) return;
    const int64_t first = first_input(position);
    const bool category = gathered && is_category(x, first_input(position + 1) - first);
    b_.inputs[r * draws_.variables + b_.input_counts[r]++] =
        category ? Input<T>{first + static_cast<int64_t>(x), T(1)}
                 : Input<T>{first, gathered ? std::numeric_limits<T>::quiet_NaN() : x};
  }

  // Evaluates network p for a row: writes the hidden units to b_.hidden.
  void evaluate(int64_t r, int64_t p) {
    constexpr int64_t width = Vec<T>::size(), strip = strip_vectors * width;
    const int64_t block = p / armlp_block, hidden = sample_.hidden;
    const int64_t stride = std::min(armlp_block, draws_.variables - block * armlp_block) * hidden;
    const S* weight = static_cast<const S*>(sample_.in_weight) +
                      (sample_.block_starts[block] + p % armlp_block) * hidden;
    const T* bias = static_cast<const T*>(sample_.in_bias) + (row_begin_ + r) * sample_.in_bias_stride + p * hidden;
    const Input<T>* inputs = b_.inputs + r * draws_.variables;
    int64_t u = 0;
    const auto units = [&]<int Vectors, bool Full>(int64_t count) {
      // The weight of a model of one variable is null.
      hidden_strip<Vectors, Full>(sample_.activation, weight == nullptr ? weight : weight + u, stride, bias + u, inputs,
                                  b_.input_counts[r], count, b_.hidden + u);
    };
    for (; u + strip <= hidden; u += strip) units.template operator()<strip_vectors, true>(strip);
    for (; u + width <= hidden; u += width) units.template operator()<1, true>(width);
    if (u < hidden) units.template operator()<1, false>(hidden - u);
  }

  T parameter(int64_t row) const {
    const S* weight = static_cast<const S*>(sample_.out_weight) + row * sample_.hidden;
    return dot(weight, b_.hidden, sample_.hidden) + static_cast<const T*>(sample_.out_bias)[row];
  }

  T draw_bernoulli(int64_t r, int64_t p, int64_t slot) {
    evaluate(r, p);
    const T logit = b_.logits[r * block_positions + slot] = parameter(p);
    return bernoulli_value(draws_, row_begin_ + r, p, b_.thresholds[r * block_positions + slot], logit);
  }

  T draw(int64_t r, int64_t p, double& log_prob) {
    evaluate(r, p);
    const int64_t first = first_parameter(p), count = first_parameter(p + 1) - first;
    for (int64_t k = 0; k < count; ++k) b_.parameters[k] = parameter(first + k);
    T own;
    const T x = draw_value(draws_, row_begin_ + r, p, b_.parameters, count, b_.weights, own);
    log_prob += static_cast<double>(own);
    return x;
  }

  const ArmlpSample& sample_;
  const Draws& draws_;
  const int64_t row_begin_, rows_;
  const bool bernoulli_, gathers_;
  Buffers<T> b_;
};

}  // namespace

void armlp_scratch(const ArmlpSample& sample, int64_t most_parameters, int64_t rows, int64_t* bytes) {
  dispatch_storage(sample.storage, [&]<typename S, typename T>() {
    Scratch scratch(nullptr);
    const Buffers<T> buffers(sample, most_parameters, rows, scratch);
    *bytes = scratch.bytes_taken();
  });
}

void armlp_sample(const ArmlpSample& sample, int64_t most_parameters, int64_t row_begin, int64_t row_end,
                  void* scratch_memory) {
  dispatch_storage(sample.storage, [&]<typename S, typename T>() {
    Scratch scratch(scratch_memory);
    Sampler<S, T>(sample, most_parameters, row_begin, row_end, scratch).run();
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
