#include "masked_mlp_cpu.h"

#include "draws.h"
#include "scratch.h"
#include "transforms.h"
#include "transpose.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int most_vectors = 4;

// Sums that are computed together are independent, which hides the latency of a multiply-add; they must fit in the
// registers with the vectors that they read.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int most_sums = 16;
#else
constexpr int most_sums = 8;
#endif

// Positions are drawn in blocks that begin at multiples of their size. First the units of a block receive what comes
// from before the block, many units at a time; then, position by position, the little that comes from within it. The
// size depends only on the network, because it is part of the order of the sums.
constexpr int64_t most_block = 16, most_block_parameters = 64;

template <typename T>
constexpr int64_t most_rows() {
  return most_vectors * Vec<T>::size();
}

// out[u][v] += weight[u][k] below[k][v] for k in [begin, end), ascending. Units and elements are `Vectors` vectors.
template <int Units, int Vectors, typename T>
AR_FAST_INLINE void multiply(const T* const* weight, const T* below, int64_t begin, int64_t end, T* out) {
  constexpr int64_t lanes = Vec<T>::size();
  constexpr int together = std::min(Vectors, most_sums / Units);
  for (int first = 0; first < Vectors; first += together) {
    Vec<T> sums[Units][together];
    AR_FAST_UNROLL
    for (int u = 0; u < Units; ++u) {
      AR_FAST_UNROLL
      for (int v = 0; v < together; ++v) sums[u][v] = Vec<T>::loadu(out + (u * Vectors + first + v) * lanes);
    }
    for (int64_t k = begin; k < end; ++k) {
      Vec<T> x[together];
      AR_FAST_UNROLL
      for (int v = 0; v < together; ++v) x[v] = in_register<T>(Vec<T>::loadu(below + (k * Vectors + first + v) * lanes));
      AR_FAST_UNROLL
      for (int u = 0; u < Units; ++u) {
        const Vec<T> w = in_register<T>(Vec<T>(weight[u][k]));
        AR_FAST_UNROLL
        for (int v = 0; v < together; ++v) sums[u][v] = at::vec::fmadd(w, x[v], sums[u][v]);
      }
    }
    AR_FAST_UNROLL
    for (int u = 0; u < Units; ++u) {
      AR_FAST_UNROLL
      for (int v = 0; v < together; ++v) sums[u][v].store(out + (u * Vectors + first + v) * lanes);
    }
  }
}

// The largest number of parameters of one variable.
int64_t most_parameters(const MaskedMlpSample& sample) {
  int64_t most = 1;
  for (int64_t p = 0; p < sample.draws.variables; ++p) {
    const MaskedMlpRange rows = masked_mlp_parameters(sample, p);
    most = std::max(most, rows.end - rows.begin);
  }
  return most;
}

// The memory of a group of `width` rows; with a null base it only counts bytes.
template <typename T>
struct Memory {
  int64_t block, most_parameters, widest, bytes;
  T* features;                     // [features][width]: the columns, then each layer; in the current block also sums
  T* logits;                       // [parameters of a block][width], or their sums
  T* values;                       // [block][width]
  int64_t bounds_stride;
  T* bounds;                       // [block][bounds_stride] of Bernoulli variables: bernoulli_bounds
  T* parameters;                   // [width][most_parameters]
  T* weights;                      // [most_parameters] of the head's draw
  T* converted;                    // [parts][most_sums][widest] of 16-bit weights

  Memory(const MaskedMlpSample& sample, int64_t width, int64_t parts, void* base) {
    Scratch scratch(base);
    most_parameters = CPU_CAPABILITY::most_parameters(sample);
    block = std::min(std::max(most_block_parameters / most_parameters, int64_t{1}), most_block);
    widest = sample.in_rows;
    for (int64_t l = 0; l < sample.hidden_layers; ++l) widest = std::max(widest, sample.layers[l].units);
    features = scratch.take<T>(sample.features * width);
    logits = scratch.take<T>(block * most_parameters * width);
    values = scratch.take<T>(block * width);
    bounds_stride = (width + philox_turn - 1) / philox_turn * philox_turn;
    bounds = scratch.take<T>(block * bounds_stride);
    parameters = scratch.take<T>(most_parameters * width);
    weights = scratch.take<T>(most_parameters);
    const bool converts = sample.storage == ScalarType::bfloat16 || sample.storage == ScalarType::float16;
    converted = scratch.take<T>(converts ? parts * most_sums * widest : 0);
    bytes = scratch.bytes_taken();
  }
};

// Converts elements [begin, end) of a row of 16-bit weights to the same indices of `out`.
template <typename S>
void convert(const void* row, int64_t begin, int64_t end, float* out) {
  const S* weights = static_cast<const S*>(row);
  int64_t k = begin;
  for (; k + Vec<float>::size() <= end; k += Vec<float>::size()) load(weights + k).store(out + k);
  for (; k < end; ++k) out[k] = to_float(weights[k]);
}

template <typename T>
using Convert = void (*)(const void* row, int64_t begin, int64_t end, T* out);

template <typename T, int Vectors>
class Group {
 public:
  static constexpr int64_t lanes = Vec<T>::size(), width = Vectors * lanes;
  // Units that are computed together read an element once; with this many, their sums hide the latency.
  static constexpr int most_units = std::max(4, std::min(8, most_sums / Vectors));
  // All units of a block take this many elements before they take the next ones: half of a small L1 cache.
  static constexpr int64_t elements_together = 16 * 1024 / (width * static_cast<int64_t>(sizeof(T)));

  // `convert` is null if the weights are stored as T.
  Group(const MaskedMlpSample& sample, int64_t row_begin, int64_t row_end, const MaskedMlpTeam& team,
        Convert<T> convert, void* scratch)
      : sample_(sample), draws_(sample.draws), team_(team), convert_(convert), row_(row_begin),
        rows_(row_end - row_begin), memory_(sample, width, team.parts, scratch) {}

  int64_t run() {
    if (draws_.start > 0) {
      for (int64_t value = 0; value <= sample_.hidden_layers; ++value) {
        move_state(value, 0, masked_mlp_known(sample_, value, draws_.start), true);
      }
    }
    for (first_ = draws_.start / memory_.block * memory_.block; first_ < draws_.stop; first_ += memory_.block) {
      const int64_t begin = std::max(first_, draws_.start), end = std::min(first_ + memory_.block, draws_.stop);
      begin_block(begin, end);
      for (int64_t p = begin; p < end; ++p) {
        for (int64_t l = 0; l <= sample_.hidden_layers; ++l) finish(l, masked_mlp_units(sample_, l, p));
        draw(p);
      }
      end_block(begin, end);
    }
    move_state(0, masked_mlp_columns(sample_, draws_.start).begin, masked_mlp_columns(sample_, draws_.stop - 1).end,
               false);
    for (int64_t l = 0; l < sample_.hidden_layers; ++l) {
      move_state(l + 1, masked_mlp_units(sample_, l, draws_.start).begin,
                 masked_mlp_units(sample_, l, draws_.stop - 1).end, false);
    }
    for (int64_t r = 0; r < rows_; ++r) draws_.log_prob[row_ + r] = log_prob_[r];
    int64_t multiply_adds = 0;
    for (int64_t part = 0; part < team_.parts; ++part) multiply_adds += multiply_adds_[part];
    return multiply_adds;
  }

 private:
  T* value(int64_t index) const { return memory_.features + masked_mlp_offset(sample_, index) * width; }

  // The values of layer l.
  T* output(int64_t l) const {
    return l == sample_.hidden_layers ? memory_.logits - first_parameter_ * width : value(l + 1);
  }

  // Copies elements [begin, end) of a value between the caller's rows and our lanes. Lanes past the batch are padding.
  void move_state(int64_t index, int64_t begin, int64_t end, bool in) {
    T* const rows =
        static_cast<T*>(sample_.state) + row_ * sample_.features + masked_mlp_offset(sample_, index) + begin;
    T* const own = value(index) + begin * width;
    if (in) {
      std::fill(own, own + (end - begin) * width, T(0));
      transpose(rows, sample_.features, own, width, rows_, end - begin);
    } else {
      transpose(own, width, rows, sample_.features, end - begin, rows_);
    }
  }

  void write_bias(const MaskedMlpLayer& layer, int64_t unit, T* out) const {
    if (layer.bias == nullptr || layer.bias_stride == 0) {
      const Vec<T> bias(layer.bias == nullptr ? T(0) : static_cast<const T*>(layer.bias)[unit]);
      for (int v = 0; v < Vectors; ++v) bias.store(out + v * lanes);
      return;
    }
    const T* bias = static_cast<const T*>(layer.bias) + unit;
    for (int64_t r = 0; r < width; ++r) out[r] = r < rows_ ? bias[(row_ + r) * layer.bias_stride] : T(0);
  }

  // Adds what `Units` units, whose extents ascend, get from elements [begin, end) of a term's value to their sums.
  template <int Units>
  AR_FAST_INLINE void add_term(const MaskedMlpTerm& term, int64_t unit, int64_t begin, int64_t end, int64_t part,
                               T* out) {
    const int64_t inputs = masked_mlp_width(sample_, term.source);
    const T* weight[Units];
    int64_t ends[Units], multiply_adds = 0;
    for (int u = 0; u < Units; ++u) {
      ends[u] = std::max(begin, std::min<int64_t>(term.extents[unit + u], end));
      multiply_adds += ends[u] - begin;
    }
    multiply_adds_[part] += multiply_adds;
    if (convert_ == nullptr) {
      const T* const first = static_cast<const T*>(term.weight) + unit * inputs;
      for (int u = 0; u < Units; ++u) weight[u] = first + u * inputs;
    } else {
      // Converted to the compute type, at the same indices.
      T* const converted = memory_.converted + part * most_sums * memory_.widest;
      for (int u = 0; u < Units; ++u) {
        convert_(static_cast<const uint16_t*>(term.weight) + (unit + u) * inputs, begin, ends[u],
                 converted + u * memory_.widest);
        weight[u] = converted + u * memory_.widest;
      }
    }
    const T* const below = value(term.source);
    T* const sums = out + unit * width;
    multiply<Units, Vectors, T>(weight, below, begin, ends[0], sums);
    if constexpr (Units > 1) {
      if (ends[Units - 1] == ends[0]) return;
      for (int u = 1; u < Units; ++u) multiply<1, Vectors, T>(weight + u, below, ends[0], ends[u], sums + u * width);
    }
  }

  // Calls body(unit, constant) for the units of a range, `constant` of them at a time.
  template <int Units = most_units, typename Body>
  AR_FAST_INLINE void in_groups(MaskedMlpRange range, const Body& body) {
    for (; range.begin + Units <= range.end; range.begin += Units) {
      body(range.begin, std::integral_constant<int, Units>{});
    }
    if constexpr (Units > 1) in_groups<Units / 2>(range, body);
  }

  // Adds what the units of positions [begin, end) get from before the block. They are independent, so the team shares
  // the work.
  void begin_block(int64_t begin, int64_t end) {
    first_parameter_ = masked_mlp_parameters(sample_, begin).begin;
    if (team_.parts == 1) {
      begin_units(begin, end, 0);
    } else {
      struct Call {
        Group* group;
        int64_t begin, end;
      } call{this, begin, end};
      team_.run(
          team_.parts,
          [](void* context, int64_t part) {
            const Call& own = *static_cast<Call*>(context);
            own.group->begin_units(own.begin, own.end, part);
          },
          &call);
    }
    begin_draws(begin, end);
  }

  void begin_units(int64_t begin, int64_t end, int64_t part) {
    for (int64_t l = 0; l <= sample_.hidden_layers; ++l) {
      const MaskedMlpLayer& layer = sample_.layers[l];
      T* const out = output(l);
      const int64_t first = masked_mlp_units(sample_, l, begin).begin;
      const int64_t count = masked_mlp_units(sample_, l, end - 1).end - first;
      const MaskedMlpRange own{first + count * part / team_.parts, first + count * (part + 1) / team_.parts};
      for (int64_t unit = own.begin; unit < own.end; ++unit) write_bias(layer, unit, out + unit * width);
      for (int t = 0; t < layer.terms; ++t) {
        const int64_t known = masked_mlp_known(sample_, layer.term[t].source, first_);
        for (int64_t k = 0; k < known; k += elements_together) {
          in_groups(own, [&](int64_t unit, auto units) {
            add_term<units>(layer.term[t], unit, k, std::min(k + elements_together, known), part, out);
          });
        }
      }
    }
  }

  void begin_draws(int64_t begin, int64_t end) {
    if (draws_.head.kind != HeadKind::bernoulli) return;
    for (int64_t p = begin; p < end; ++p) bernoulli_bounds(draws_, row_, width, p, bounds(p));
  }

  T* bounds(int64_t p) const { return memory_.bounds + (p - first_) * memory_.bounds_stride; }

  // Completes the sums of these units, and applies the activation.
  void finish(int64_t l, MaskedMlpRange range) {
    const MaskedMlpLayer& layer = sample_.layers[l];
    T* const out = output(l);
    const T* const added = layer.add < 0 ? nullptr : value(layer.add);
    in_groups(range, [&](int64_t unit, auto units) {
      for (int t = 0; t < layer.terms; ++t) {
        const int64_t source = layer.term[t].source;
        add_term<units>(layer.term[t], unit, masked_mlp_known(sample_, source, first_),
                        masked_mlp_width(sample_, source), 0, out);
      }
    });
    if (added == nullptr && !layer.activated) return;
    for (int64_t at = range.begin * width; at < range.end * width; at += lanes) {
      Vec<T> sum = Vec<T>::loadu(out + at);
      if (added != nullptr) sum = sum + Vec<T>::loadu(added + at);
      (layer.activated ? activate<T>(sample_.activation, sum) : sum).store(out + at);
    }
  }

  void draw(int64_t p) {
    T* const value = memory_.values + (p - first_) * width;
    if (draws_.head.kind == HeadKind::bernoulli) {
      draw_bernoulli(p, value);
    } else if (draws_.head.kind == HeadKind::transform) {
      transform(p, value);
    } else {
      draw_head(p, value);
    }
    const MaskedMlpRange columns = masked_mlp_columns(sample_, p);
    const bool one = columns.end - columns.begin == 1;
    for (int64_t c = columns.begin; c < columns.end; ++c) {
      const Vec<T> category(static_cast<T>(c - columns.begin));
      for (int v = 0; v < Vectors; ++v) {
        const Vec<T> drawn = Vec<T>::loadu(value + v * lanes);
        (one ? drawn : one_where(drawn == category)).store(memory_.features + c * width + v * lanes);
      }
    }
    // What is drawn is a category; what is known may be none.
    for (int64_t r = 0; !one && draws_.known != nullptr && r < rows_; ++r) {
      if (is_category(value[r], columns.end - columns.begin)) continue;
      for (int64_t c = columns.begin; c < columns.end; ++c) {
        memory_.features[c * width + r] = std::numeric_limits<T>::quiet_NaN();
      }
    }
  }

  static Vec<T> one_where(const Vec<T>& mask) { return Vec<T>::blendv(zero<T>(), Vec<T>(T(1)), mask); }

  // Draws variables with one parameter each: the rows stay in lanes.
  void draw_bernoulli(int64_t p, T* value) {
    const T* const logits = output(sample_.hidden_layers) + p * width;
    if (draws_.coding.runs()) {
      for (int64_t r = 0; r < width; ++r) {
        value[r] = r < rows_ ? bernoulli_value(draws_, row_ + r, p, T(0), logits[r]) : T(0);
      }
      return;
    }
    const Vec<T> temperature(static_cast<T>(draws_.temperature));
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      const Vec<T> probability = sigmoid<T>(Vec<T>::loadu(logits + v * lanes) / temperature);
      one_where(probability > Vec<T>::loadu(bounds(p) + v * lanes)).store(value + v * lanes);
    }
    if (draws_.known == nullptr) return;
    for (int64_t r = 0; r < rows_; ++r) {
      if (const T* known = draws_.known_value<T>(row_ + r, p)) value[r] = *known;
    }
  }

  void draw_head(int64_t p, T* value) {
    const MaskedMlpRange rows = masked_mlp_parameters(sample_, p);
    const int64_t count = rows.end - rows.begin;
    const T* const lanes_of_rows = output(sample_.hidden_layers) + rows.begin * width;
    for (int64_t r = 0; r < width; ++r) {
      if (r >= rows_) {
        value[r] = T(0);
        continue;
      }
      T* const own = memory_.parameters + r * memory_.most_parameters;
      for (int64_t j = 0; j < count; ++j) own[j] = lanes_of_rows[j * width + r];
      T log_prob;
      value[r] = draw_value(draws_, row_ + r, p, own, count, memory_.weights, log_prob);
      log_prob_[r] += static_cast<double>(log_prob);
    }
  }

  void transform(int64_t p, T* value) {
    const MaskedMlpRange rows = masked_mlp_parameters(sample_, p);
    const int64_t count = rows.end - rows.begin;
    const T* const lanes_of_rows = output(sample_.hidden_layers) + rows.begin * width;
    T log_derivative[width];
    for (int64_t r = 0; r < width; ++r) value[r] = r < rows_ ? draws_.noise<T>(row_ + r, p) : T(0);
    if (sample_.transform.is_affine()) {
      for (int64_t at = 0; at < width; at += lanes) {
        Vec<T> own_log_derivative;
        const Vec<T> shift = Vec<T>::loadu(lanes_of_rows + at), scale = Vec<T>::loadu(lanes_of_rows + width + at);
        affine_inverse<T>(sample_.transform, shift, scale, Vec<T>::loadu(value + at), own_log_derivative)
            .store(value + at);
        own_log_derivative.store(log_derivative + at);
      }
    } else {
      for (int64_t r = 0; r < rows_; ++r) {
        T* const own = memory_.parameters + r * memory_.most_parameters;
        for (int64_t j = 0; j < count; ++j) own[j] = lanes_of_rows[j * width + r];
        value[r] = transform_inverse(sample_.transform, own, count, value[r], log_derivative[r]);
      }
    }
    for (int64_t r = 0; r < rows_; ++r) {
      if (const T* known = draws_.known_value<T>(row_ + r, p)) {
        value[r] = *known;
      } else {
        log_prob_[r] += static_cast<double>(log_derivative[r]);
      }
    }
  }

  // What later positions do not need: the values in the caller's rows, and the log-probability of Bernoulli variables.
  void end_block(int64_t begin, int64_t end) {
    transpose(memory_.values + (begin - first_) * width, width, draws_.values_of<T>(row_) + begin,
              draws_.values_stride, end - begin, rows_);
    if (draws_.head.kind == HeadKind::bernoulli) add_log_prob(begin, end);
  }

  // log p(x) = x a - softplus(a) = x a - max(a, 0) - log(1 + exp(-|a|)), for a whole block with one logarithm: `excess`
  // is the product of its factors 1 + exp(-|a|), minus 1, which keeps the digits of small terms.
  void add_log_prob(int64_t begin, int64_t end) {
    double linear[width] = {}, excess[width] = {};
    for (int64_t p = begin; p < end; ++p) {
      const T* const logits = output(sample_.hidden_layers) + p * width;
      const T* const values = memory_.values + (p - first_) * width;
      T added[width], odds[width];
      for (int v = 0; v < Vectors; ++v) {
        const Vec<T> logit = Vec<T>::loadu(logits + v * lanes), value = Vec<T>::loadu(values + v * lanes);
        (value * logit - at::vec::maximum(logit, zero<T>())).store(added + v * lanes);
        logit.abs().neg().exp().store(odds + v * lanes);
      }
      for (int64_t r = 0; draws_.known != nullptr && r < rows_; ++r) {
        if (draws_.is_known(row_ + r, p)) added[r] = odds[r] = T(0);
      }
      for (int64_t r = 0; r < width; ++r) {
        linear[r] += static_cast<double>(added[r]);
        excess[r] += excess[r] * static_cast<double>(odds[r]) + static_cast<double>(odds[r]);
      }
    }
    for (int64_t r = 0; r < width; r += Vec<double>::size()) {
      const Vec<double> normalizer = Vec<double>::loadu(excess + r).log1p();
      (Vec<double>::loadu(log_prob_ + r) + Vec<double>::loadu(linear + r) - normalizer).store(log_prob_ + r);
    }
  }

  const MaskedMlpSample& sample_;
  const Draws& draws_;
  const MaskedMlpTeam team_;
  const Convert<T> convert_;
  const int64_t row_, rows_;
  const Memory<T> memory_;
  int64_t first_ = 0, first_parameter_ = 0;  // first position and first parameter of the block
  int64_t multiply_adds_[masked_mlp_most_parts] = {};
  double log_prob_[width] = {};
};

template <typename T>
int64_t run_group(const MaskedMlpSample& sample, int64_t row_begin, int64_t row_end, const MaskedMlpTeam& team,
                  Convert<T> convert, void* scratch) {
  switch ((row_end - row_begin + Vec<T>::size() - 1) / Vec<T>::size()) {
    case 1: return Group<T, 1>(sample, row_begin, row_end, team, convert, scratch).run();
    case 2: return Group<T, 2>(sample, row_begin, row_end, team, convert, scratch).run();
    default: return Group<T, most_vectors>(sample, row_begin, row_end, team, convert, scratch).run();
  }
}

template <typename T>
void layout_of(const MaskedMlpSample& sample, int64_t parts, MaskedMlpLayout* layout) {
  layout->lanes = Vec<T>::size();
  layout->most_rows = most_rows<T>();
  layout->bytes = Memory<T>(sample, most_rows<T>(), parts, nullptr).bytes;
}

}  // namespace

void masked_mlp_layout(const MaskedMlpSample& sample, int64_t parts, MaskedMlpLayout* layout) {
  sample.storage == ScalarType::float64 ? layout_of<double>(sample, parts, layout)
                                        : layout_of<float>(sample, parts, layout);
}

void masked_mlp_sample(const MaskedMlpSample& sample, int64_t row_begin, int64_t row_end, void* scratch,
                       const MaskedMlpTeam& team, int64_t* multiply_adds) {
  dispatch_storage(sample.storage, [&]<typename S, typename T>() {
    Convert<T> widen = nullptr;
    if constexpr (!std::is_same_v<S, T>) widen = &convert<S>;
    *multiply_adds = run_group<T>(sample, row_begin, row_end, team, widen, scratch);
  });
}

}  // namespace ar_fast::CPU_CAPABILITY
