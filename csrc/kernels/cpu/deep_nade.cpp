// Sampling of an orderless NADE of several layers: a team of threads goes through the positions. Each thread has its
// own units of every layer and its own rows to draw, and waits for the others after each layer and after the draws.
#include "deep_nade_cpu.h"

#include "dense_product.h"
#include "draws.h"
#include "scratch.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int64_t row_group = 64;      // rows whose hidden units stay in the second cache while the weights are read
constexpr int64_t drawn_together = 8;  // rows whose parameters are computed before they draw
constexpr int64_t unit_step = 16;      // a thread's units begin at a whole cache line

template <typename S, typename T>
class DeepNadeSampler {
 public:
  DeepNadeSampler(const DeepNadeSample& sample, const Team& team, Scratch& shared, Scratch& own)
      : s_(sample), draws_(sample.draws), team_(team) {
    for (int64_t l = 0; l <= s_.layers; ++l) hidden_[l] = shared.take<T>(draws_.batch * padded(l));
    drawing_ = own.take<int64_t>(draws_.batch);
    x_ = own.take<const T*>(draws_.batch);
    parameters_ = own.take<T>(drawn_together * s_.most_parameters);
    weights_ = own.take<T>(2 * s_.most_parameters);
  }

  void run() {
    begin();
    for (int64_t p = draws_.start; p < draws_.stop; ++p) {
      find_rows(p);
      if (drawing_count_ == 0) {
        take_known(p);
        continue;
      }
      first_layer();
      team_.wait();
      for (int64_t l = 1; l <= s_.layers; ++l) {
        layer(l);
        team_.wait();
      }
      draw(p);
      take_known(p);
      team_.wait();
      observe(p);
    }
  }

 private:
  int64_t padded(int64_t l) const { return (s_.units(l) + Vec<T>::size() - 1) / Vec<T>::size() * Vec<T>::size(); }
  // The units of layer l, in the i-th row that draws.
  T* hidden(int64_t l, int64_t i) const { return hidden_[l] + i * padded(l); }
  T* state(int64_t row) const { return static_cast<T*>(s_.state) + row * s_.hidden; }

  void begin() {
    const Range rows = team_.share(draws_.batch, 1);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      draws_.log_prob[row] = 0;
      for (int64_t l = 0; l <= s_.layers; ++l) {
        for (int64_t j = s_.units(l); j < padded(l); ++j) hidden(l, row)[j] = T(0);
      }
    }
    team_.wait();
  }

  // The rows that draw at a position.
  void find_rows(int64_t p) {
    drawing_count_ = 0;
    for (int64_t row = 0; row < draws_.batch; ++row) {
      if (!draws_.is_known(row, p)) drawing_[drawing_count_++] = row;
    }
  }

  void take_known(int64_t p) const {
    if (drawing_count_ == draws_.batch) return;
    const Range rows = team_.share(draws_.batch, 1);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      if (const T* const known = draws_.template known_value<T>(row, p)) draws_.template values_of<T>(row)[p] = *known;
    }
  }

  // to[j] = f(from[j]) of this part's units.
  void activate_units(const Range& units, const T* from, T* to) const {
    for_lanes<T>(units.end - units.begin, [&](int64_t j, int64_t n) {
      const int64_t at = units.begin + j;
      store_lanes<T>(activate<T>(s_.activation, load_lanes(from + at, n)), to + at, n);
    });
  }

  void first_layer() const {
    const Range units = team_.share(s_.hidden, unit_step);
    for (int64_t i = 0; i < drawing_count_; ++i) activate_units(units, state(drawing_[i]), hidden(0, i));
  }

  void layer(int64_t l) {
    const DeepNadeLayer& own = s_.layer[l - 1];
    const int64_t inputs = s_.units(l - 1);
    const Range units = team_.share(own.units, unit_step);
    if (units.begin == units.end) return;
    for (int64_t first = 0; first < drawing_count_; first += row_group) {
      const int64_t rows = drawing_count_ - first < row_group ? drawing_count_ - first : row_group;
      for (int64_t i = 0; i < rows; ++i) x_[i] = hidden(l - 1, first + i);
      Product<S, T>(static_cast<const S*>(own.weight) + units.begin * inputs,
                    static_cast<const T*>(own.bias) + units.begin, inputs, hidden(l, first) + units.begin, padded(l))
          .run(units.end - units.begin, x_, rows);
      for (int64_t i = 0; i < rows; ++i) activate_units(units, hidden(l, first + i), hidden(l, first + i));
    }
  }

  void draw(int64_t p) {
    const int64_t variable = draws_.variable(p), first_row = s_.first_out_row(variable);
    const int64_t count = s_.first_out_row(variable + 1) - first_row, inputs = s_.units(s_.layers);
    const Product<S, T> product(static_cast<const S*>(s_.out_weight) + first_row * inputs,
                                static_cast<const T*>(s_.out_bias) + first_row, inputs, parameters_, count);
    const Range rows = team_.share(drawing_count_, 1);
    for (int64_t first = rows.begin; first < rows.end; first += drawn_together) {
      const int64_t together = rows.end - first < drawn_together ? rows.end - first : drawn_together;
      for (int64_t i = 0; i < together; ++i) x_[i] = hidden(s_.layers, first + i);
      product.run(count, x_, together);
      for (int64_t i = 0; i < together; ++i) {
        const int64_t row = drawing_[first + i];
        T log_prob;
        draws_.template values_of<T>(row)[p] =
            draw_value(draws_, row, p, parameters_ + i * count, count, weights_, log_prob);
        draws_.log_prob[row] += static_cast<double>(log_prob);
      }
    }
  }

  // What was drawn enters the state, of this part's units.
  void observe(int64_t p) const {
    const int64_t variable = draws_.variable(p);
    const bool gathers = s_.gathers_row(variable);
    const Range units = team_.share(s_.hidden, unit_step);
    const S* const mask = static_cast<const S*>(s_.mask_weight) + variable * s_.hidden + units.begin;
    for (int64_t i = 0; i < drawing_count_; ++i) {
      const T value = draws_.template values_of<T>(drawing_[i])[p];
      const int64_t in_row = s_.first_in_row(variable) + (gathers ? static_cast<int64_t>(value) : 0);
      const S* const weight = static_cast<const S*>(s_.in_weight) + in_row * s_.hidden + units.begin;
      T* const a = state(drawing_[i]) + units.begin;
      const Vec<T> factor(gathers ? T(1) : value);
      for_lanes<T>(units.end - units.begin, [&](int64_t j, int64_t n) {
        const bool full = n == Vec<T>::size();
        const Vec<T> w = full ? load(weight + j) : load_partial(weight + j, n);
        const Vec<T> m = full ? load(mask + j) : load_partial(mask + j, n);
        store_lanes<T>(load_lanes(a + j, n) + at::vec::fmadd(factor, w, m), a + j, n);
      });
    }
  }

  const DeepNadeSample& s_;
  const Draws& draws_;
  const Team& team_;
  T* hidden_[deep_nade_most_layers + 1];   // by layer: [B, padded]
  int64_t* drawing_;
  const T** x_;
  T *parameters_, *weights_;
  int64_t drawing_count_ = 0;
};

}  // namespace

void deep_nade_layout(const DeepNadeSample& sample, TeamLayout* layout) {
  dispatch_storage(sample.storage, [&]<typename S, typename T>() {
    Scratch shared(nullptr), own(nullptr);
    const Team team{1, 0, nullptr};
    const DeepNadeSampler<S, T> sampler(sample, team, shared, own);
    *layout = {shared.bytes_taken(), own.bytes_taken()};
  });
}

void deep_nade_sample(const DeepNadeSample& sample, const Team& team, void* shared_memory, void* own_memory) {
  dispatch_storage(sample.storage, [&]<typename S, typename T>() {
    Scratch shared(shared_memory), own(own_memory);
    DeepNadeSampler<S, T>(sample, team, shared, own).run();
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
