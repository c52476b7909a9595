#include "masked_mlp_cpu.h"

#include "head_math.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int most_vectors = 4;
// Units of one step that run together: their sums are independent, which hides the latency of a multiply-add.
constexpr int units_together = 4;

template <typename T>
constexpr int64_t most_rows() {
  return most_vectors * Vec<T>::size();
}

template <typename T>
Vec<T> activate(MlpActivation activation, const Vec<T>& x) {
  const Vec<T> none = zero<T>(), one(T(1));
  switch (activation) {
    case MlpActivation::relu: return at::vec::maximum(x, none);
    case MlpActivation::sigmoid: return sigmoid<T>(x);
    case MlpActivation::tanh: return x.tanh();
    case MlpActivation::elu: return Vec<T>::blendv(x.expm1(), x, x > none);
    case MlpActivation::softplus: return softplus<T>(x);
    case MlpActivation::silu: return x * sigmoid<T>(x);
    case MlpActivation::gelu: return Vec<T>(T(0.5)) * x * (one + (x * Vec<T>(T(0.7071067811865475244))).erf());
    case MlpActivation::leaky_relu: return Vec<T>::blendv(x * Vec<T>(T(0.01)), x, x > none);
  }
  return x;
}

// sums[u][v] += weight[u][k] below[k][v] for k in [begin, end), ascending.
template <int Units, int Vectors, typename T>
void multiply(const T* const* weight, const T* below, int64_t begin, int64_t end, Vec<T> (*sums)[Vectors]) {
  constexpr int64_t lanes = Vec<T>::size();
  Vec<T> total[Units][Vectors];
#pragma GCC unroll 4
  for (int u = 0; u < Units; ++u) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) total[u][v] = sums[u][v];
  }
  for (int64_t k = begin; k < end; ++k) {
    Vec<T> x[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) x[v] = Vec<T>::loadu(below + (k * Vectors + v) * lanes);
#pragma GCC unroll 4
    for (int u = 0; u < Units; ++u) {
      const Vec<T> w(weight[u][k]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) total[u][v] = at::vec::fmadd(w, x[v], total[u][v]);
    }
  }
#pragma GCC unroll 4
  for (int u = 0; u < Units; ++u) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sums[u][v] = total[u][v];
  }
}

// Of one variable.
inline int64_t most_parameters(const MaskedMlpSample& sample) {
  int64_t most = 1;
  for (int64_t p = 0; p < sample.variables; ++p) {
    const MaskedMlpRange rows = masked_mlp_parameters(sample, p);
    most = std::max(most, rows.end - rows.begin);
  }
  return most;
}

template <typename S, typename T, int Vectors>
class Group {
 public:
  static constexpr int64_t lanes = Vec<T>::size(), width = Vectors * lanes;

  Group(const MaskedMlpSample& sample, int64_t row_begin, int64_t row_end, void* scratch)
      : sample_(sample), row_(row_begin), rows_(row_end - row_begin), memory_(static_cast<T*>(scratch)) {
    T* next = memory_ + sample.in_rows * width;
    values_[0] = memory_;
    features_ = sample.in_rows;
    int64_t widest = sample.in_rows;
    for (int64_t l = 0; l < sample.hidden_layers; ++l) {
      offsets_[l] = features_;
      features_ += sample.layers[l].units;
      values_[l + 1] = next;
      next += sample.layers[l].units * width;
      widest = std::max(widest, sample.layers[l].units);
    }
    for (int u = 0; u < units_together; ++u) converted_[u] = next + u * widest;
    next += units_together * widest;
    most_parameters_ = most_parameters(sample);
    parameters_ = next;
    weights_ = parameters_ + width * most_parameters_;
  }

  int64_t run() {
    if (sample_.start > 0) {
      move_state(0, 0, masked_mlp_columns(sample_, sample_.start).begin, 0, true);
      for (int64_t l = 0; l < sample_.hidden_layers; ++l) {
        move_state(l + 1, 0, sample_.layers[l].unit_ends[sample_.start - 1], offsets_[l], true);
      }
    }
    for (int64_t p = sample_.start; p < sample_.stop; ++p) {
      for (int64_t l = 0; l < sample_.hidden_layers; ++l) {
        const int32_t* ends = sample_.layers[l].unit_ends;
        hidden_units(l, p == 0 ? 0 : ends[p - 1], ends[p]);
      }
      draw(p);
    }
    move_state(0, masked_mlp_columns(sample_, sample_.start).begin, masked_mlp_columns(sample_, sample_.stop - 1).end, 0,
               false);
    for (int64_t l = 0; l < sample_.hidden_layers; ++l) {
      const int32_t* ends = sample_.layers[l].unit_ends;
      move_state(l + 1, sample_.start == 0 ? 0 : ends[sample_.start - 1], ends[sample_.stop - 1], offsets_[l], false);
    }
    for (int64_t r = 0; r < rows_; ++r) static_cast<double*>(sample_.log_prob)[row_ + r] = log_prob_[r];
    return multiply_adds_;
  }

 private:
  // Features [begin, end) of a layer between the caller's rows and our lanes. Lanes past the batch are padding.
  void move_state(int64_t layer, int64_t begin, int64_t end, int64_t offset, bool in) {
    for (int64_t f = begin; f < end; ++f) {
      T* lanes_of_feature = values_[layer] + f * width;
      T* rows = static_cast<T*>(sample_.state) + row_ * features_ + offset + f;
      if (in) {
        for (int64_t r = 0; r < width; ++r) lanes_of_feature[r] = r < rows_ ? rows[r * features_] : T(0);
      } else {
        for (int64_t r = 0; r < rows_; ++r) rows[r * features_] = lanes_of_feature[r];
      }
    }
  }

  // Row `unit` of a layer's weight in the compute type, as far as the unit sees.
  const T* weight_row(const MaskedMlpLayer& layer, int64_t inputs, int64_t unit, int slot) {
    const S* row = static_cast<const S*>(layer.weight) + unit * inputs;
    if constexpr (std::is_same_v<S, T>) {
      return row;
    } else {
      const int64_t count = layer.extents[unit];
      T* out = converted_[slot];
      int64_t k = 0;
      for (; k + lanes <= count; k += lanes) load(row + k).store(out + k);
      for (; k < count; ++k) out[k] = to_float(row[k]);
      return out;
    }
  }

  void bias_of(const MaskedMlpLayer& layer, int64_t unit, Vec<T>* sums) const {
    const T* bias = static_cast<const T*>(layer.bias) + unit;
    if (layer.bias_stride == 0) {
      for (int v = 0; v < Vectors; ++v) sums[v] = Vec<T>(*bias);
      return;
    }
    T values[width];
    for (int64_t r = 0; r < width; ++r) values[r] = r < rows_ ? bias[(row_ + r) * layer.bias_stride] : T(0);
    for (int v = 0; v < Vectors; ++v) sums[v] = Vec<T>::loadu(values + v * lanes);
  }

  // Pre-activations of `Units` units, whose extents ascend.
  template <int Units>
  void pre_activations(int64_t l, int64_t unit, Vec<T> (*sums)[Vectors]) {
    const MaskedMlpLayer& layer = sample_.layers[l];
    const int64_t inputs = l == 0 ? sample_.in_rows : sample_.layers[l - 1].units;
    const T* weight[Units];
    for (int u = 0; u < Units; ++u) {
      bias_of(layer, unit + u, sums[u]);
      weight[u] = weight_row(layer, inputs, unit + u, u);
      multiply_adds_ += layer.extents[unit + u];
    }
    const int64_t common = layer.extents[unit];
    multiply<Units, Vectors, T>(weight, values_[l], 0, common, sums);
    for (int u = 1; u < Units; ++u) {
      multiply<1, Vectors, T>(weight + u, values_[l], common, layer.extents[unit + u], sums + u);
    }
  }

  template <int Units>
  void hidden_block(int64_t l, int64_t unit) {
    Vec<T> sums[Units][Vectors];
    pre_activations<Units>(l, unit, sums);
    for (int u = 0; u < Units; ++u) {
      for (int v = 0; v < Vectors; ++v) {
        activate<T>(sample_.activation, sums[u][v]).store(values_[l + 1] + ((unit + u) * Vectors + v) * lanes);
      }
    }
  }

  void hidden_units(int64_t l, int64_t begin, int64_t end) {
    int64_t unit = begin;
    for (; unit + units_together <= end; unit += units_together) hidden_block<units_together>(l, unit);
    for (; unit < end; ++unit) hidden_block<1>(l, unit);
  }

  void draw(int64_t p) {
    const int64_t variable = sample_.order == nullptr ? p : sample_.order[p];
    T value[width] = {};
    if (sample_.head.kind == HeadKind::bernoulli) {
      draw_bernoulli(p, variable, value);
    } else {
      draw_head(p, variable, value);
    }
    const int64_t count = sample_.stop - sample_.start;
    for (int64_t r = 0; r < rows_; ++r) static_cast<T*>(sample_.values)[(row_ + r) * count + p - sample_.start] = value[r];
    const MaskedMlpRange columns = masked_mlp_columns(sample_, p);
    for (int64_t c = columns.begin; c < columns.end; ++c) {
      T* out = values_[0] + c * width;
      const bool one = columns.end - columns.begin == 1;
      for (int64_t r = 0; r < width; ++r) out[r] = one ? value[r] : value[r] == static_cast<T>(c - columns.begin) ? T(1) : T(0);
    }
  }

  // Whether the value is known; then it is written.
  bool take_known(int64_t r, int64_t variable, T* value) const {
    const int64_t at = (row_ + r) * sample_.variables + variable;
    if (sample_.known == nullptr || sample_.known[at] == 0) return false;
    *value = static_cast<const T*>(sample_.given)[at];
    return true;
  }

  uint64_t number(int64_t r) const { return static_cast<uint64_t>(sample_.first_index + row_ + r); }

  // One parameter each: the rows stay in lanes.
  void draw_bernoulli(int64_t p, int64_t variable, T* value) {
    Vec<T> logits[1][Vectors];
    pre_activations<1>(sample_.hidden_layers, p, logits);
    T probability[width], normalizer[width], logit[width];
    const Vec<T> temperature(static_cast<T>(sample_.temperature));
    for (int v = 0; v < Vectors; ++v) {
      sigmoid<T>(logits[0][v] / temperature).store(probability + v * lanes);
      softplus<T>(logits[0][v]).store(normalizer + v * lanes);
      logits[0][v].store(logit + v * lanes);
    }
    for (int64_t r = 0; r < rows_; ++r) {
      if (take_known(r, variable, value + r)) continue;
      const double uniform = philox_uniform(sample_.seed, number(r), static_cast<uint32_t>(variable), 0);
      value[r] = uniform < static_cast<double>(probability[r]) ? T(1) : T(0);
      log_prob_[r] += static_cast<double>(value[r]) * static_cast<double>(logit[r]) - static_cast<double>(normalizer[r]);
    }
  }

  void draw_head(int64_t p, int64_t variable, T* value) {
    const MaskedMlpRange rows = masked_mlp_parameters(sample_, p);
    int64_t j = rows.begin;
    for (; j + units_together <= rows.end; j += units_together) parameter_block<units_together>(rows.begin, j);
    for (; j < rows.end; ++j) parameter_block<1>(rows.begin, j);
    const int64_t count = rows.end - rows.begin;
    for (int64_t r = 0; r < rows_; ++r) {
      if (take_known(r, variable, value + r)) continue;
      const T* own = parameters_ + r * most_parameters_;
      value[r] = head_draw_one(sample_.head, own, count, sample_.seed, number(r), static_cast<uint32_t>(variable),
                               static_cast<T>(sample_.temperature), weights_);
      log_prob_[r] += static_cast<double>(head_log_prob_one(sample_.head, own, count, value[r]));
    }
  }

  // Parameters j ... of a variable that begin at row `first`, from lanes to [width, most_parameters].
  template <int Units>
  void parameter_block(int64_t first, int64_t j) {
    Vec<T> sums[Units][Vectors];
    pre_activations<Units>(sample_.hidden_layers, j, sums);
    for (int u = 0; u < Units; ++u) {
      T lane[width];
      for (int v = 0; v < Vectors; ++v) sums[u][v].store(lane + v * lanes);
      for (int64_t r = 0; r < rows_; ++r) parameters_[r * most_parameters_ + j + u - first] = lane[r];
    }
  }

  const MaskedMlpSample& sample_;
  int64_t row_, rows_, features_ = 0, multiply_adds_ = 0;
  T* memory_;
  T* values_[masked_mlp_max_layers + 1];   // the columns, then each hidden layer: [features][width]
  int64_t offsets_[masked_mlp_max_layers];
  T* converted_[units_together];
  T *parameters_, *weights_;               // [width, most_parameters_], [most_parameters_]
  int64_t most_parameters_;
  double log_prob_[width] = {};
};

template <typename S, typename T>
int64_t run_group(const MaskedMlpSample& sample, int64_t row_begin, int64_t row_end, void* scratch) {
  switch ((row_end - row_begin + Vec<T>::size() - 1) / Vec<T>::size()) {
    case 1: return Group<S, T, 1>(sample, row_begin, row_end, scratch).run();
    case 2: return Group<S, T, 2>(sample, row_begin, row_end, scratch).run();
    default: return Group<S, T, most_vectors>(sample, row_begin, row_end, scratch).run();
  }
}

template <typename T>
void layout_of(const MaskedMlpSample& sample, MaskedMlpLayout* layout) {
  int64_t features = sample.in_rows, widest = sample.in_rows;
  for (int64_t l = 0; l < sample.hidden_layers; ++l) {
    features += sample.layers[l].units;
    widest = std::max(widest, sample.layers[l].units);
  }
  layout->lanes = Vec<T>::size();
  layout->most_rows = most_rows<T>();
  layout->bytes = (features * most_rows<T>() + units_together * widest + most_parameters(sample) * (most_rows<T>() + 1)) *
                  static_cast<int64_t>(sizeof(T));
}

}  // namespace

void masked_mlp_layout(const MaskedMlpSample& sample, MaskedMlpLayout* layout) {
  sample.storage == ScalarType::float64 ? layout_of<double>(sample, layout) : layout_of<float>(sample, layout);
}

void masked_mlp_sample(const MaskedMlpSample& sample, int64_t row_begin, int64_t row_end, void* scratch,
                       int64_t* multiply_adds) {
  switch (sample.storage) {
    case ScalarType::float32:
      *multiply_adds = run_group<float, float>(sample, row_begin, row_end, scratch);
      return;
    case ScalarType::float64:
      *multiply_adds = run_group<double, double>(sample, row_begin, row_end, scratch);
      return;
    case ScalarType::bfloat16:
      *multiply_adds = run_group<bfloat16, float>(sample, row_begin, row_end, scratch);
      return;
    case ScalarType::float16:
      *multiply_adds = run_group<float16, float>(sample, row_begin, row_end, scratch);
      return;
  }
}

}  // namespace ar_fast::CPU_CAPABILITY
