// Sampling of recurrent models: a team of threads goes through the positions. Each thread has its own units of every
// layer, and waits for the others after each layer, after the parameters, and after the draws.
#include "rnn_cpu.h"

#include "dense_product.h"
#include "draws.h"
#include "scratch.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int64_t unit_block = 48;     // units whose pre-activations are kept until the gates are applied
constexpr int64_t row_group = 64;      // rows whose states stay in the second cache while the weights are read

template <typename S, typename T>
class RnnSampler {
 public:
  RnnSampler(const RnnSample& sample, const Team& team, Scratch& shared, Scratch& own)
      : s_(sample), draws_(sample.draws), team_(team), hidden_(sample.hidden), gates_(sample.gates()),
        padded_((sample.hidden + Vec<T>::size() - 1) / Vec<T>::size() * Vec<T>::size()),
        group_(sample.draws.batch < row_group ? sample.draws.batch : row_group) {
    states_[0] = shared.take<T>(sample.layers * draws_.batch * padded_);
    states_[1] = shared.take<T>(sample.layers * draws_.batch * padded_);
    parameters_ = shared.take<T>(draws_.batch * sample.parameters);
    running_ = own.take<int64_t>(draws_.batch);
    drawing_ = own.take<int64_t>(draws_.batch);
    x_ = own.take<const T*>(draws_.batch);
    from_state_ = own.take<T>(group_ * gates_ * unit_block);
    from_input_ = own.take<T>(group_ * gates_ * unit_block);
    weights_ = own.take<T>(2 * sample.parameters);
  }

  void run() {
    begin();
    int64_t p = draws_.start;
    for (; p < draws_.stop && find_rows(p); ++p, now_ ^= 1) {
      for (int64_t l = 0; l < s_.layers; ++l) {
        layer(l, p);
        team_.wait();
      }
      if (drawing_count_ > 0) {
        parameters();
        team_.wait();
      }
      draw(p);
      team_.wait();
    }
    // Rows that became finished have stored their states already.
    if (p == draws_.stop) find_rows(p);
    const Range rows = team_.share(running_count_, 1);
    for (int64_t i = rows.begin; i < rows.end; ++i) store_state(running_[i], states_[now_]);
  }

 private:
  T* state(T* states, int64_t layer, int64_t row) const { return states + (layer * draws_.batch + row) * padded_; }

  void begin() {
    const Range rows = team_.share(draws_.batch, 1);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      draws_.log_prob[row] = 0;
      for (int64_t l = 0; l < s_.layers; ++l) {
        T* const to = state(states_[0], l, row);
        const T* const from = static_cast<const T*>(s_.state) + (l * draws_.batch + row) * hidden_;
        for (int64_t j = 0; j < hidden_; ++j) to[j] = from[j];
        for (int64_t j = hidden_; j < padded_; ++j) to[j] = state(states_[1], l, row)[j] = T(0);
      }
    }
    team_.wait();
  }

  void store_state(int64_t row, T* states) const {
    for (int64_t l = 0; l < s_.layers; ++l) {
      const T* const from = state(states, l, row);
      T* const to = static_cast<T*>(s_.state) + (l * draws_.batch + row) * hidden_;
      for (int64_t j = 0; j < hidden_; ++j) to[j] = from[j];
    }
  }

  // Finds the rows that are not finished, and those of them that draw at a position; false if there are none.
  bool find_rows(int64_t p) {
    running_count_ = drawing_count_ = 0;
    for (int64_t row = 0; row < draws_.batch; ++row) {
      if (s_.finished[row]) continue;
      running_[running_count_++] = row;
      if (p < draws_.stop && !draws_.is_known(row, p)) drawing_[drawing_count_++] = row;
    }
    return running_count_ > 0;
  }

  void layer(int64_t l, int64_t p) {
    const RnnLayer& own = s_.layer[l];
    const Range units = team_.share(hidden_, 16);
    const int64_t stride = gates_ * unit_block;
    for (int64_t first = 0; first < running_count_; first += group_) {
      const int64_t rows = running_count_ - first < group_ ? running_count_ - first : group_;
      for (int64_t u = units.begin; u < units.end; u += unit_block) {
        const int64_t count = units.end - u < unit_block ? units.end - u : unit_block;
        products(own.recurrent_weight, own.recurrent_bias, states_[now_], l, u, count, first, rows, from_state_);
        if (l > 0) products(own.in_weight, own.in_bias, states_[now_ ^ 1], l - 1, u, count, first, rows, from_input_);
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t row = running_[first + i];
          if (l == 0) input(row, p, u, count, from_input_ + i * stride);
          apply_gates(l, row, u, count, from_input_ + i * stride, from_state_ + i * stride);
        }
      }
    }
  }

  // out[i][gate][unit] for `rows` running rows from `first` on, from the states of a layer.
  void products(const void* weight, const void* bias, T* states, int64_t of_layer, int64_t u, int64_t count,
                int64_t first, int64_t rows, T* out) {
    for (int64_t i = 0; i < rows; ++i) x_[i] = state(states, of_layer, running_[first + i]);
    for (int64_t g = 0; g < gates_; ++g) {
      const int64_t at = g * hidden_ + u;
      Product<S, T>(static_cast<const S*>(weight) + at * hidden_, static_cast<const T*>(bias) + at, hidden_,
                    out + g * unit_block, gates_ * unit_block)
          .run(count, x_, rows);
    }
  }

  // U x + c
  void input(int64_t row, int64_t p, int64_t u, int64_t count, T* out) const {
    const T* const bias = static_cast<const T*>(s_.in_bias) + row * s_.in_bias_stride;
    const T value = static_cast<const T*>(s_.last)[row];
    const bool none = s_.begins && p == draws_.start;
    const bool category = !none && s_.gathers && is_category(value, s_.parameters);
    const int64_t entry = category ? static_cast<int64_t>(value) : 0;
    const T* const table = static_cast<const T*>(s_.in_table) + entry * gates_ * hidden_;
    const Vec<T> factor(category ? T(1) : s_.gathers ? std::numeric_limits<T>::quiet_NaN() : value);
    for (int64_t g = 0; g < gates_; ++g) {
      for_lanes<T>(count, [&](int64_t j, int64_t n) {
        const int64_t at = g * hidden_ + u + j;
        const Vec<T> c = load_lanes(bias + at, n);
        (none ? c : at::vec::fmadd(factor, load_lanes(table + at, n), c)).store(out + g * unit_block + j);
      });
    }
  }

  // The next state of units u ... u + count - 1 of a row, from a and s, each by gate.
  void apply_gates(int64_t l, int64_t row, int64_t u, int64_t count, const T* a, const T* s) const {
    T* const next = state(states_[now_ ^ 1], l, row) + u;
    const T* const before = state(states_[now_], l, row) + u;
    // Products write `count` units and no whole vector.
    const auto sum = [&](int64_t g, int64_t j, int64_t n) __attribute__((always_inline)) {
      return load_lanes(a + g * unit_block + j, n) + load_lanes(s + g * unit_block + j, n);
    };
    if (s_.cell == RnnCell::gru) {
      for_lanes<T>(count, [&](int64_t j, int64_t n) {
        const Vec<T> r = sigmoid<T>(sum(0, j, n)), z = sigmoid<T>(sum(1, j, n));
        const Vec<T> state_part = load_lanes(s + 2 * unit_block + j, n);
        const Vec<T> fresh = tanh_of<T>(at::vec::fmadd(r, state_part, load_lanes(a + 2 * unit_block + j, n)));
        store_lanes<T>(at::vec::fmadd(z, load_lanes(before + j, n) - fresh, fresh), next + j, n);
      });
    } else if (s_.cell == RnnCell::lstm) {
      T* const cell = static_cast<T*>(s_.cell_state) + (l * draws_.batch + row) * hidden_ + u;
      for_lanes<T>(count, [&](int64_t j, int64_t n) {
        const Vec<T> i = sigmoid<T>(sum(0, j, n)), f = sigmoid<T>(sum(1, j, n)), g = tanh_of<T>(sum(2, j, n));
        const Vec<T> o = sigmoid<T>(sum(3, j, n)), kept = f * load_lanes(cell + j, n);
        const Vec<T> now = at::vec::fmadd(i, g, kept);
        store_lanes<T>(now, cell + j, n);
        store_lanes<T>(o * tanh_of<T>(now), next + j, n);
      });
    } else if (s_.cell == RnnCell::rnn) {
      for_lanes<T>(count, [&](int64_t j, int64_t n) { store_lanes<T>(tanh_of<T>(sum(0, j, n)), next + j, n); });
    } else {
      for_lanes<T>(count, [&](int64_t j, int64_t n) {
        store_lanes<T>(at::vec::maximum(sum(0, j, n), zero<T>()), next + j, n);
      });
    }
  }

  // The parameters of the drawing rows, in their order.
  void parameters() {
    const Range rows = team_.share(s_.parameters, 4);
    for (int64_t i = 0; i < drawing_count_; ++i) x_[i] = state(states_[now_ ^ 1], s_.layers - 1, drawing_[i]);
    Product<S, T>(static_cast<const S*>(s_.out_weight) + rows.begin * hidden_,
                  static_cast<const T*>(s_.out_bias) + rows.begin, hidden_, parameters_ + rows.begin, s_.parameters)
        .run(rows.end - rows.begin, x_, drawing_count_);
  }

  void draw(int64_t p) {
    const Range rows = team_.share(running_count_, 1);
    int64_t drawing = 0;
    for (int64_t i = 0; i < rows.end; ++i) {
      const int64_t row = running_[i];
      const T* const own = parameters_ + drawing * s_.parameters;
      drawing += drawing < drawing_count_ && drawing_[drawing] == row;
      if (i < rows.begin) continue;
      T log_prob;
      const T value = draw_value(draws_, row, p, own, s_.parameters, weights_, log_prob);
      draws_.log_prob[row] += static_cast<double>(log_prob);
      draws_.values_of<T>(row)[p] = static_cast<T*>(s_.last)[row] = value;
      if (s_.finishes(row, p, value)) {
        s_.finished[row] = 1;
        store_state(row, states_[now_ ^ 1]);
      }
    }
  }

  const RnnSample& s_;
  const Draws& draws_;
  const Team& team_;
  const int64_t hidden_, gates_, padded_, group_;
  T* states_[2];                   // [L, B, padded] each: before and after a position, in turns
  int now_ = 0;                    // which of the two is the state before
  T* parameters_;                  // [drawing rows, K]
  int64_t *running_, *drawing_;    // rows
  int64_t running_count_ = 0, drawing_count_ = 0;
  const T** x_;
  T *from_state_, *from_input_;    // [row_group, G, unit_block]
  T* weights_;
};

}  // namespace

void rnn_layout(const RnnSample& sample, TeamLayout* layout) {
  dispatch_storage(sample.storage, [&]<typename S, typename T>() {
    Scratch shared(nullptr), own(nullptr);
    const Team team{1, 0, nullptr};
    const RnnSampler<S, T> sampler(sample, team, shared, own);
    *layout = {shared.bytes_taken(), own.bytes_taken()};
  });
}

void rnn_sample(const RnnSample& sample, const Team& team, void* shared_memory, void* own_memory) {
  dispatch_storage(sample.storage, [&]<typename S, typename T>() {
    Scratch shared(shared_memory), own(own_memory);
    RnnSampler<S, T>(sample, team, shared, own).run();
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
