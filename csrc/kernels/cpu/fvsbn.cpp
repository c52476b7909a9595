// FVSBN sampling: each drawn value is pushed into the parameters of the variables still to come.
//
// Pushing reads the weights that a non-zero value has, contiguous, and adds them without a reduction; gathering would
// read for each variable the weights of the values before it: for 13 of 100 ones, D = 784, a row takes 2,500 vector
// steps instead of 40,000 scalar ones; where every value counts both do the same multiply-adds.
//
// Positions go in blocks. Within a block a value is pushed only as far as the block reaches; when all rows are through,
// the block's values are pushed into the rest a strip of columns at a time, which stays in registers for a row and
// whose weights stay in the cache for all rows.
#include "fvsbn_cpu.h"

#include "draws.h"
#include "scratch.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int64_t block_positions = 32;
constexpr int strip_vectors = 8;

// A value to be pushed: its factor and its row of weight.
template <typename T>
struct Push {
  int64_t weight_row;
  T x;
};

template <typename T>
struct Buffers {
  Push<T>* pushes;         // [rows, block]
  int64_t* push_counts;    // [rows]
  double* uniforms;        // [block]
  T *thresholds, *x, *terms;  // [block]
  T* weights;              // [most_parameters], of one draw

  Buffers(int64_t rows, int64_t most_parameters, Scratch& scratch) {
    pushes = scratch.take<Push<T>>(rows * block_positions);
    push_counts = scratch.take<int64_t>(rows);
    uniforms = scratch.take<double>(block_positions);
    thresholds = scratch.take<T>(block_positions);
    x = scratch.take<T>(block_positions);
    terms = scratch.take<T>(block_positions);
    weights = scratch.take<T>(most_parameters);
  }
};

// state[begin, end) += x weight[begin, end)
template <typename S, typename T>
inline void push(const S* weight, T x, T* state, int64_t begin, int64_t end) {
  const Vec<T> factor(x);
  for_lanes<T>(end - begin, [&](int64_t k, int64_t n) {
    const S* from = weight + begin + k;
    T* to = state + begin + k;
    const Vec<T> w = n == Vec<T>::size() ? load(from) : load_partial(from, n);
    store_lanes<T>(at::vec::fmadd(factor, w, load_lanes(to, n)), to, n);
  });
}

// state[0, Vectors vectors or fewer) += the pushes, in their order. Full: all lanes of all vectors.
template <int Vectors, bool Full, typename S, typename T>
AR_FAST_INLINE void push_all(const S* weight, int64_t stride, const Push<T>* pushes, int64_t count, T* state,
                             int64_t columns) {
  constexpr int64_t width = Vec<T>::size();
  Vec<T> sums[Vectors];
  AR_FAST_UNROLL
  for (int v = 0; v < Vectors; ++v) sums[v] = Full ? Vec<T>::loadu(state + v * width) : load_partial(state, columns);
  for (int64_t i = 0; i < count; ++i) {
    const Vec<T> factor(pushes[i].x);
    const S* row = weight + pushes[i].weight_row * stride;
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      sums[v] = at::vec::fmadd(factor, Full ? load(row + v * width) : load_partial(row, columns), sums[v]);
    }
  }
  AR_FAST_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    Full ? sums[v].store(state + v * width) : sums[v].store(state, static_cast<int>(columns));
  }
}

template <typename S, typename T>
class Sampler {
 public:
  Sampler(const FvsbnSample& sample, int64_t most_parameters, int64_t row_begin, int64_t row_end, Scratch& scratch)
      : sample_(sample), draws_(sample.draws), row_begin_(row_begin), rows_(row_end - row_begin),
        gathers_(draws_.head.kind == HeadKind::categorical), b_(rows_, most_parameters, scratch) {}

  void run() {
    double* log_prob = draws_.log_prob + row_begin_;
    for (int64_t r = 0; r < rows_; ++r) log_prob[r] = 0;
    for (int64_t start = draws_.start; start < draws_.stop; start += block_positions) {
      const int64_t stop = std::min(start + block_positions, draws_.stop);
      for (int64_t r = 0; r < rows_; ++r) {
        b_.push_counts[r] = 0;
        draws_.head.kind == HeadKind::bernoulli ? draw_bernoulli(r, start, stop, log_prob[r])
                                                 : draw(r, start, stop, log_prob[r]);
      }
      push_further(first_column(place(stop - 1)));
    }
  }

 private:
  int64_t place(int64_t position) const { return draws_.variables - 1 - position; }
  int64_t first_column(int64_t place) const {
    return sample_.offsets ? sample_.offsets[place] : place * (sample_.out_rows / draws_.variables);
  }
  bool gathers(int64_t place) const {
    return gathers_ || (sample_.in_offsets && sample_.in_offsets[place + 1] - sample_.in_offsets[place] > 1);
  }
  int64_t first_row(int64_t place) const {
    return sample_.in_offsets ? sample_.in_offsets[place] : gathers_ ? first_column(place) : place;
  }
  T* state(int64_t r) const { return static_cast<T*>(sample_.state) + (row_begin_ + r) * sample_.out_rows; }
  T* values(int64_t r) const { return draws_.values_of<T>(row_begin_ + r); }

  // Into the columns [low, those of this place); what lies below low is left for push_further.
  void take(int64_t r, int64_t place, T x, int64_t low) {
    const bool category = gathers(place);
    if (!category && x == T(0)) return;
    const int64_t column = first_column(place), first = first_row(place);
    const Push<T> own = category ? Push<T>{first + static_cast<int64_t>(x), T(1)} : Push<T>{first, x};
    b_.pushes[r * block_positions + b_.push_counts[r]++] = own;
    const S* row = static_cast<const S*>(sample_.weight) + own.weight_row * sample_.out_rows;
    push(row, own.x, state(r), low, column);
  }

  void draw(int64_t r, int64_t start, int64_t stop, double& log_prob) {
    const int64_t low = first_column(place(stop - 1));
    for (int64_t p = start; p < stop; ++p) {
      const int64_t column = first_column(place(p)), count = first_column(place(p) + 1) - column;
      const T* parameters = state(r) + column;
      T own;
      const T x = draw_value(draws_, row_begin_ + r, p, parameters, count, b_.weights, own);
      log_prob += static_cast<double>(own);
      values(r)[p] = x;
      take(r, place(p), x, low);
    }
  }

  // The columns of a block are its places: they are gone through from the last to the first, from one that is not zero
  // to the next.
  void draw_bernoulli(int64_t r, int64_t start, int64_t stop, double& log_prob) {
    const int64_t low = place(stop - 1), count = stop - start;
    const auto position = [&](int64_t k) { return draws_.variables - 1 - low - k; };
    bernoulli_thresholds(draws_, row_begin_ + r, count, position, b_.uniforms, b_.thresholds);
    T* const logits = state(r) + low;
    for (int64_t k = count - 1; k >= 0; --k) {
      b_.x[k] = bernoulli_value(draws_, row_begin_ + r, position(k), b_.thresholds[k], logits[k]);
      take(r, low + k, b_.x[k], low);
    }
    bernoulli_log_prob(logits, b_.x, count, b_.terms);
    T* const out = values(r);
    for (int64_t k = count - 1; k >= 0; --k) {
      out[position(k)] = b_.x[k];
      if (!draws_.is_known(row_begin_ + r, position(k))) log_prob += static_cast<double>(b_.terms[k]);
    }
  }

  // The block's values of all rows into the columns [0, end).
  void push_further(int64_t end) {
    constexpr int64_t width = Vec<T>::size(), strip = strip_vectors * width;
    const S* const weight = static_cast<const S*>(sample_.weight);
    int64_t c = 0;
    const auto columns = [&]<int Vectors, bool Full>(int64_t count) {
      for (int64_t r = 0; r < rows_; ++r) {
        push_all<Vectors, Full>(weight + c, sample_.out_rows, b_.pushes + r * block_positions, b_.push_counts[r],
                                state(r) + c, count);
      }
    };
    for (; c + strip <= end; c += strip) columns.template operator()<strip_vectors, true>(strip);
    for (; c + width <= end; c += width) columns.template operator()<1, true>(width);
    if (c < end) columns.template operator()<1, false>(end - c);
  }

  const FvsbnSample& sample_;
  const Draws& draws_;
  const int64_t row_begin_, rows_;
  const bool gathers_;
  Buffers<T> b_;
};

}  // namespace

void fvsbn_layout(const FvsbnSample& sample, int64_t most_parameters, int64_t rows, FvsbnLayout* layout) {
  layout->block = block_positions;
  dispatch_storage(sample.storage, [&]<typename S, typename T>() {
    Scratch scratch(nullptr);
    const Buffers<T> buffers(rows, most_parameters, scratch);
    layout->bytes = scratch.bytes_taken();
  });
}

void fvsbn_sample(const FvsbnSample& sample, int64_t most_parameters, int64_t row_begin, int64_t row_end,
                  void* scratch_memory) {
  dispatch_storage(sample.storage, [&]<typename S, typename T>() {
    Scratch scratch(scratch_memory);
    Sampler<S, T>(sample, most_parameters, row_begin, row_end, scratch).run();
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
