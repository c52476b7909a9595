// Sampling of a masked perceptron without hidden layers whose weight is stored by input: each drawn value is pushed,
// that is, added into the parameters of the later variables.
//
// Pushing reads only the contiguous weights of nonzero values, and adds them without a reduction. Gathering would read,
// for each variable, the weights of all values before it. If 13 of 100 values are ones and D = 784, pushing takes 2,500
// vector steps per row, and gathering 40,000 scalar ones; if all values are nonzero, both do the same multiply-adds.
//
// Positions are drawn in blocks. Within a block, a value is pushed only to the end of the block. When all rows are
// through, the block's values are pushed into the rest, one strip of columns at a time: the strip stays in registers
// for a row, and its weights stay in the cache for all rows.
#include "masked_mlp_cpu.h"

#include "draws.h"
#include "scratch.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int64_t block_positions = 32;
constexpr int strip_vectors = 8;

// A value to push: its factor and its row of weight.
template <typename T>
struct Push {
  int64_t weight_row;
  T x;
};

// Where each position's entries begin. `each` is computed once, since a division takes longer than all work at a zero.
class Starts {
 public:
  Starts(const int64_t* offsets, int64_t rows, int64_t variables)
      : offsets_(offsets), each_(offsets == nullptr ? rows / variables : 0) {}
  int64_t operator[](int64_t position) const { return offsets_ ? offsets_[position] : position * each_; }
  int64_t count(int64_t position) const { return offsets_ ? offsets_[position + 1] - offsets_[position] : each_; }
  int64_t most(int64_t begin, int64_t end) const {
    int64_t most = each_;
    for (int64_t p = begin; offsets_ && p < end; ++p) most = std::max(most, count(p));
    return most;
  }

 private:
  const int64_t* offsets_;
  int64_t each_;
};

// The parameters of the positions of a call, in the order in which a row of weight has them.
struct Window {
  Starts parameters;
  int64_t begin, end;       // columns of weight
  int64_t most_parameters;  // of one variable

  explicit Window(const MaskedMlpSample& sample)
      : parameters(sample.out_offsets, sample.layers[0].units, sample.draws.variables),
        begin(sample.layers[0].units - parameters[sample.draws.stop]),
        end(sample.layers[0].units - parameters[sample.draws.start]),
        most_parameters(parameters.most(sample.draws.start, sample.draws.stop)) {}
};

template <typename T>
struct Memory {
  T* sums;                    // [rows, window]: the parameters, summed so far
  Push<T>* pushes;            // [rows, block]
  int64_t* push_counts;       // [rows]
  T *thresholds, *x, *terms;  // [block]
  T* weights;                 // [most_parameters], of one draw

  Memory(const Window& window, int64_t rows, Scratch& scratch) {
    sums = scratch.take<T>(rows * (window.end - window.begin));
    pushes = scratch.take<Push<T>>(rows * block_positions);
    push_counts = scratch.take<int64_t>(rows);
    thresholds = scratch.take<T>(block_positions);
    x = scratch.take<T>(block_positions);
    terms = scratch.take<T>(block_positions);
    weights = scratch.take<T>(window.most_parameters);
  }
};

// Computes sums[0, count) += x weight[0, count).
template <typename S, typename T>
inline void push(const S* weight, T x, T* sums, int64_t count) {
  const Vec<T> factor(x);
  for_lanes<T>(count, [&](int64_t k, int64_t n) {
    const Vec<T> w = n == Vec<T>::size() ? load(weight + k) : load_partial(weight + k, n);
    store_lanes<T>(at::vec::fmadd(factor, w, load_lanes(sums + k, n)), sums + k, n);
  });
}

// Adds the pushes in their order to sums[0, Vectors vectors or fewer). Full: all lanes of all vectors.
template <int Vectors, bool Full, typename S, typename T>
AR_FAST_INLINE void push_all(const S* weight, int64_t stride, const Push<T>* pushes, int64_t count, T* sums,
                             int64_t columns) {
  constexpr int64_t width = Vec<T>::size();
  Vec<T> own[Vectors];
  AR_FAST_UNROLL
  for (int v = 0; v < Vectors; ++v) own[v] = Full ? Vec<T>::loadu(sums + v * width) : load_partial(sums, columns);
  for (int64_t i = 0; i < count; ++i) {
    const Vec<T> factor = in_register<T>(Vec<T>(pushes[i].x));
    const S* row = weight + pushes[i].weight_row * stride;
    unroll<Vectors>([&](auto v) {
      own[v] = at::vec::fmadd(factor, Full ? load(row + v * width) : load_partial(row, columns), own[v]);
    });
  }
  AR_FAST_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    Full ? own[v].store(sums + v * width) : own[v].store(sums, static_cast<int>(columns));
  }
}

template <typename S, typename T>
class Pusher {
 public:
  Pusher(const MaskedMlpSample& sample, int64_t row_begin, int64_t row_end, void* scratch_memory)
      : sample_(sample), draws_(sample.draws), row_begin_(row_begin), rows_(row_end - row_begin), window_(sample),
        parameters_(window_.parameters), columns_(sample.in_offsets, sample.in_rows, draws_.variables),
        width_(window_.end - window_.begin), out_rows_(sample.layers[0].units), scratch_(scratch_memory),
        memory_(window_, rows_, scratch_) {}

  void run() {
    for (int64_t r = 0; r < rows_; ++r) {
      write_bias(r);
      memory_.push_counts[r] = 0;
    }
    for (int64_t first = 0; first < draws_.start; first += block_positions) {
      const int64_t last = std::min(first + block_positions, draws_.start);
      for (int64_t r = 0; r < rows_; ++r) {
        for (int64_t p = first; p < last; ++p) take_state(r, p);
      }
      push_further(width_);
    }
    double* log_prob = draws_.log_prob + row_begin_;
    for (int64_t r = 0; r < rows_; ++r) log_prob[r] = 0;
    for (int64_t start = draws_.start; start < draws_.stop; start += block_positions) {
      const int64_t stop = std::min(start + block_positions, draws_.stop);
      for (int64_t r = 0; r < rows_; ++r) {
        draws_.head.kind == HeadKind::bernoulli ? draw_bernoulli(r, start, stop, log_prob[r])
                                                 : draw(r, start, stop, log_prob[r]);
      }
      push_further(first_sum(stop - 1));
    }
  }

 private:
  // Where the parameters of a position begin among the sums. Those of later positions are before them.
  int64_t first_sum(int64_t position) const {
    return out_rows_ - parameters_[position + 1] - window_.begin;
  }
  int64_t first_weight_row(int64_t position) const { return sample_.in_rows - columns_[position + 1]; }
  T* sums(int64_t r) const { return memory_.sums + r * width_; }
  T* state(int64_t r) const { return static_cast<T*>(sample_.state) + (row_begin_ + r) * sample_.in_rows; }
  const S* weight(int64_t row) const {
    return static_cast<const S*>(sample_.layers[0].term[0].weight) + row * out_rows_;
  }

  void write_bias(int64_t r) const {
    const MaskedMlpLayer& layer = sample_.layers[0];
    T* const out = sums(r);
    if (layer.bias == nullptr) {
      std::fill(out, out + width_, T(0));
      return;
    }
    const T* const bias = static_cast<const T*>(layer.bias) + (row_begin_ + r) * layer.bias_stride;
    for (int64_t p = draws_.start; p < draws_.stop; ++p) {
      const T* const own = bias + parameters_[p];
      T* const to = out + first_sum(p);
      for (int64_t k = 0; k < parameters_.count(p); ++k) to[k] = own[k];
    }
  }

  void keep(int64_t r, const Push<T>& push) const {
    memory_.pushes[r * block_positions + memory_.push_counts[r]++] = push;
  }

  // Pushes the values that were drawn before this call.
  void take_state(int64_t r, int64_t position) const {
    const T* const x = state(r) + columns_[position];
    for (int64_t c = 0; c < columns_.count(position); ++c) {
      if (x[c] == T(0)) continue;
      // A state that this op returned has one category for each variable, but any other state works too.
      if (memory_.push_counts[r] == block_positions) push_row(r, width_);
      keep(r, {first_weight_row(position) + c, x[c]});
    }
  }

  // Pushes a drawn value into the sums [low, end); push_further handles the sums below low.
  void take(int64_t r, const Push<T>& drawn, int64_t low, int64_t end) const {
    keep(r, drawn);
    push(weight(drawn.weight_row) + window_.begin + low, drawn.x, sums(r) + low, end - low);
  }

  T value(int64_t r, int64_t p, T& log_prob) const {
    T* const parameters = sums(r) + first_sum(p);
    const int64_t row = row_begin_ + r, count = parameters_.count(p);
    if (draws_.head.kind != HeadKind::transform) {
      return draw_value(draws_, row, p, parameters, count, memory_.weights, log_prob);
    }
    log_prob = T(0);
    if (const T* known = draws_.known_value<T>(row, p)) return *known;
    return transform_inverse(sample_.transform, parameters, count, draws_.noise<T>(row, p), log_prob);
  }

  void draw(int64_t r, int64_t start, int64_t stop, double& log_prob) const {
    const int64_t low = first_sum(stop - 1);
    T* const values = draws_.values_of<T>(row_begin_ + r);
    for (int64_t p = start; p < stop; ++p) {
      T own_log_prob;
      values[p] = value(r, p, own_log_prob);
      log_prob += static_cast<double>(own_log_prob);
      T* const own = state(r) + columns_[p];
      if (columns_.count(p) == 1 && draws_.head.kind != HeadKind::categorical) {
        own[0] = values[p];
        if (values[p] != T(0)) take(r, {first_weight_row(p), values[p]}, low, first_sum(p));
      } else {
        // What is drawn is a category; what is known may be none.
        const bool is_one = is_category(values[p], columns_.count(p));
        const int64_t category = is_one ? static_cast<int64_t>(values[p]) : 0;
        const T x = is_one ? T(1) : std::numeric_limits<T>::quiet_NaN();
        std::fill(own, own + columns_.count(p), is_one ? T(0) : x);
        own[category] = x;
        take(r, {first_weight_row(p) + category, x}, low, first_sum(p));
      }
    }
  }

  // Draws variables with one parameter and one column each. It goes through a block's logits from the last to the
  // first, and stops only at those whose value is not zero.
  void draw_bernoulli(int64_t r, int64_t start, int64_t stop, double& log_prob) const {
    const int64_t low = first_sum(stop - 1), count = stop - start;
    const auto position = [&](int64_t k) { return stop - 1 - k; };
    bernoulli_thresholds(draws_, row_begin_ + r, count, position, memory_.thresholds);
    T* const logits = sums(r) + low;
    for (int64_t k = count - 1; k >= 0; --k) {
      memory_.x[k] = bernoulli_value(draws_, row_begin_ + r, position(k), memory_.thresholds[k], logits[k]);
      if (memory_.x[k] != T(0)) take(r, {sample_.in_rows - 1 - position(k), memory_.x[k]}, low, low + k);
    }
    bernoulli_log_prob(logits, memory_.x, count, memory_.terms);
    T* const values = draws_.values_of<T>(row_begin_ + r);
    T* const own = state(r);
    for (int64_t k = count - 1; k >= 0; --k) {
      values[position(k)] = own[position(k)] = memory_.x[k];
      if (!draws_.is_known(row_begin_ + r, position(k))) log_prob += static_cast<double>(memory_.terms[k]);
    }
  }

  // Adds what a row has kept to the sums [0, end).
  void push_row(int64_t r, int64_t end) const {
    for (int64_t i = 0; i < memory_.push_counts[r]; ++i) {
      const Push<T>& kept = memory_.pushes[r * block_positions + i];
      push(weight(kept.weight_row) + window_.begin, kept.x, sums(r), end);
    }
    memory_.push_counts[r] = 0;
  }

  // Does the same for all rows.
  void push_further(int64_t end) const {
    constexpr int64_t width = Vec<T>::size(), strip = strip_vectors * width;
    int64_t c = 0;
    const auto columns = [&]<int Vectors, bool Full>(int64_t count) {
      for (int64_t r = 0; r < rows_; ++r) {
        push_all<Vectors, Full>(weight(0) + window_.begin + c, out_rows_, memory_.pushes + r * block_positions,
                                memory_.push_counts[r], sums(r) + c, count);
      }
    };
    for (; c + strip <= end; c += strip) columns.template operator()<strip_vectors, true>(strip);
    for (; c + width <= end; c += width) columns.template operator()<1, true>(width);
    if (c < end) columns.template operator()<1, false>(end - c);
    for (int64_t r = 0; r < rows_; ++r) memory_.push_counts[r] = 0;
  }

  const MaskedMlpSample& sample_;
  const Draws& draws_;
  const int64_t row_begin_, rows_;
  const Window window_;
  const Starts parameters_, columns_;
  const int64_t width_, out_rows_;
  Scratch scratch_;
  const Memory<T> memory_;
};

}  // namespace

void masked_mlp_push_layout(const MaskedMlpSample& sample, int64_t rows, MaskedMlpPushLayout* layout) {
  layout->block = block_positions;
  dispatch_storage(sample.storage, [&]<typename S, typename T>() {
    Scratch scratch(nullptr);
    const Memory<T> memory(Window(sample), rows, scratch);
    layout->bytes = scratch.bytes_taken();
  });
}

void masked_mlp_push(const MaskedMlpSample& sample, int64_t row_begin, int64_t row_end, void* scratch) {
  dispatch_storage(sample.storage,
                   [&]<typename S, typename T>() { Pusher<S, T>(sample, row_begin, row_end, scratch).run(); });
}

}  // namespace ar_fast::CPU_CAPABILITY
