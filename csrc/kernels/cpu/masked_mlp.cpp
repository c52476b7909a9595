#include "masked_mlp_cpu.h"

#include "bernoulli_draws.h"
#include "head_math.h"
#include "scratch.h"

namespace ar_fast::CPU_CAPABILITY {
namespace {

constexpr int most_vectors = 4;

// Sums that run together are independent, which hides the latency of a multiply-add; with the vectors they read they
// have to fit in the registers.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int most_sums = 16;
#else
constexpr int most_sums = 8;
#endif

// Positions are drawn in blocks that begin at multiples of their size: first what the units of a block get from before
// it, many units at a time, then position by position the little that they get from within it. The size depends on the
// network alone, because it is part of the order of the sums.
constexpr int64_t most_block = 16, most_block_parameters = 64;

template <typename T>
constexpr int64_t most_rows() {
  return most_vectors * Vec<T>::size();
}

// sums[u][v] += weight[u][k] below[k][v] for k in [begin, end), ascending.
template <int Units, int Vectors, typename T>
AR_FAST_INLINE void multiply(const T* const* weight, const T* below, int64_t begin, int64_t end,
                             Vec<T> (*sums)[Vectors]) {
  constexpr int64_t lanes = Vec<T>::size();
  Vec<T> total[Units][Vectors];
  AR_FAST_UNROLL
  for (int u = 0; u < Units; ++u) {
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) total[u][v] = sums[u][v];
  }
  for (int64_t k = begin; k < end; ++k) {
    Vec<T> x[Vectors];
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) x[v] = Vec<T>::loadu(below + (k * Vectors + v) * lanes);
    AR_FAST_UNROLL
    for (int u = 0; u < Units; ++u) {
      const Vec<T> w(weight[u][k]);
      AR_FAST_UNROLL
      for (int v = 0; v < Vectors; ++v) total[u][v] = at::vec::fmadd(w, x[v], total[u][v]);
    }
  }
  AR_FAST_UNROLL
  for (int u = 0; u < Units; ++u) {
    AR_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) sums[u][v] = total[u][v];
  }
}

// Of one variable.
int64_t most_parameters(const MaskedMlpSample& sample) {
  int64_t most = 1;
  for (int64_t p = 0; p < sample.variables; ++p) {
    const MaskedMlpRange rows = masked_mlp_parameters(sample, p);
    most = std::max(most, rows.end - rows.begin);
  }
  return most;
}

// What a group of `width` rows works in, or only counts with a null base.
template <typename T>
struct Memory {
  int64_t block, most_parameters, widest, bytes;
  T* features;                     // [features][width]: the columns, then each layer; sums of a block not yet finished
  T* logits;                       // [parameters of a block][width], the sums likewise
  T* values;                       // [block][width]
  double* uniforms;                // [block][width] of Bernoulli variables
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
    uniforms = scratch.take<double>(block * width);
    parameters = scratch.take<T>(most_parameters * width);
    weights = scratch.take<T>(most_parameters);
    const bool converts = sample.storage == ScalarType::bfloat16 || sample.storage == ScalarType::float16;
    converted = scratch.take<T>(converts ? parts * most_sums * widest : 0);
    bytes = scratch.bytes_taken();
  }
};

template <typename S, typename T, int Vectors>
class Group {
 public:
  static constexpr int64_t lanes = Vec<T>::size(), width = Vectors * lanes;
  static constexpr int most_units = std::min(8, most_sums / Vectors);

  Group(const MaskedMlpSample& sample, int64_t row_begin, int64_t row_end, const MaskedMlpTeam& team, void* scratch)
      : sample_(sample), team_(team), row_(row_begin), rows_(row_end - row_begin),
        memory_(sample, width, team.parts, scratch) {}

  int64_t run() {
    if (sample_.start > 0) {
      for (int64_t value = 0; value <= sample_.hidden_layers; ++value) {
        move_state(value, 0, masked_mlp_known(sample_, value, sample_.start), true);
      }
    }
    for (first_ = sample_.start / memory_.block * memory_.block; first_ < sample_.stop; first_ += memory_.block) {
      const int64_t begin = std::max(first_, sample_.start), end = std::min(first_ + memory_.block, sample_.stop);
      begin_block(begin, end);
      for (int64_t p = begin; p < end; ++p) {
        for (int64_t l = 0; l <= sample_.hidden_layers; ++l) finish(l, masked_mlp_units(sample_, l, p));
        draw(p);
      }
      end_block(begin, end);
    }
    move_state(0, masked_mlp_columns(sample_, sample_.start).begin, masked_mlp_columns(sample_, sample_.stop - 1).end,
               false);
    for (int64_t l = 0; l < sample_.hidden_layers; ++l) {
      move_state(l + 1, masked_mlp_units(sample_, l, sample_.start).begin,
                 masked_mlp_units(sample_, l, sample_.stop - 1).end, false);
    }
    for (int64_t r = 0; r < rows_; ++r) static_cast<double*>(sample_.log_prob)[row_ + r] = log_prob_[r];
    int64_t multiply_adds = 0;
    for (int64_t part = 0; part < team_.parts; ++part) multiply_adds += multiply_adds_[part];
    return multiply_adds;
  }

 private:
  T* value(int64_t index) const { return memory_.features + masked_mlp_offset(sample_, index) * width; }

  // What layer l gives.
  T* output(int64_t l) const {
    return l == sample_.hidden_layers ? memory_.logits - first_parameter_ * width : value(l + 1);
  }

  // Elements [begin, end) of a value between the caller's rows and our lanes. Lanes past the batch are padding.
  void move_state(int64_t index, int64_t begin, int64_t end, bool in) {
    constexpr int64_t together = 16;
    T* const rows = static_cast<T*>(sample_.state) + row_ * sample_.features + masked_mlp_offset(sample_, index);
    T* const own = value(index);
    for (int64_t f = begin; f < end; f += together) {
      const int64_t stop = std::min(f + together, end);
      for (int64_t r = 0; r < (in ? width : rows_); ++r) {
        for (int64_t g = f; g < stop; ++g) {
          if (in) {
            own[g * width + r] = r < rows_ ? rows[r * sample_.features + g] : T(0);
          } else {
            rows[r * sample_.features + g] = own[g * width + r];
          }
        }
      }
    }
  }

  // Elements [begin, end) of a weight row, in the compute type and at their places.
  const T* weight_row(const S* row, int64_t begin, int64_t end, int64_t slot) {
    if constexpr (std::is_same_v<S, T>) {
      return row;
    } else {
      T* out = memory_.converted + slot * memory_.widest;
      int64_t k = begin;
      for (; k + lanes <= end; k += lanes) load(row + k).store(out + k);
      for (; k < end; ++k) out[k] = to_float(row[k]);
      return out;
    }
  }

  void bias_of(const MaskedMlpLayer& layer, int64_t unit, Vec<T>* sums) const {
    if (layer.bias == nullptr || layer.bias_stride == 0) {
      const Vec<T> bias(layer.bias == nullptr ? T(0) : static_cast<const T*>(layer.bias)[unit]);
      for (int v = 0; v < Vectors; ++v) sums[v] = bias;
      return;
    }
    const T* bias = static_cast<const T*>(layer.bias) + unit;
    T values[width];
    for (int64_t r = 0; r < width; ++r) values[r] = r < rows_ ? bias[(row_ + r) * layer.bias_stride] : T(0);
    for (int v = 0; v < Vectors; ++v) sums[v] = Vec<T>::loadu(values + v * lanes);
  }

  // Adds what `Units` units, whose extents ascend, get from the elements [begin, end) of a term's value.
  template <int Units>
  AR_FAST_INLINE void add_term(const MaskedMlpTerm& term, int64_t unit, int64_t begin, int64_t end, int64_t part,
                               Vec<T> (*sums)[Vectors]) {
    const int64_t inputs = masked_mlp_width(sample_, term.source);
    const T* weight[Units];
    int64_t ends[Units];
    for (int u = 0; u < Units; ++u) {
      ends[u] = std::max(begin, std::min<int64_t>(term.extents[unit + u], end));
      weight[u] = weight_row(static_cast<const S*>(term.weight) + (unit + u) * inputs, begin, ends[u],
                             part * most_sums + u);
      multiply_adds_[part] += ends[u] - begin;
    }
    const T* const below = value(term.source);
    multiply<Units, Vectors, T>(weight, below, begin, ends[0], sums);
    if constexpr (Units > 1) {
      if (ends[Units - 1] == ends[0]) return;
      for (int u = 1; u < Units; ++u) multiply<1, Vectors, T>(weight + u, below, ends[0], ends[u], sums + u);
    }
  }

  // body(unit, constant) for the units of a range, `constant` of them at a time.
  template <int Units = most_units, typename Body>
  AR_FAST_INLINE void in_groups(MaskedMlpRange range, const Body& body) {
    for (; range.begin + Units <= range.end; range.begin += Units) {
      body(range.begin, std::integral_constant<int, Units>{});
    }
    if constexpr (Units > 1) in_groups<Units / 2>(range, body);
  }

  // What the units of positions [begin, end) get from before the block. None waits for another: the team shares them.
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
    begin_uniforms(begin, end);
  }

  void begin_units(int64_t begin, int64_t end, int64_t part) {
    for (int64_t l = 0; l <= sample_.hidden_layers; ++l) {
      const MaskedMlpLayer& layer = sample_.layers[l];
      T* const out = output(l);
      const int64_t first = masked_mlp_units(sample_, l, begin).begin;
      const int64_t count = masked_mlp_units(sample_, l, end - 1).end - first;
      in_groups({first + count * part / team_.parts, first + count * (part + 1) / team_.parts},
                [&](int64_t unit, auto units) {
        Vec<T> sums[units][Vectors];
        for (int u = 0; u < units; ++u) bias_of(layer, unit + u, sums[u]);
        for (int t = 0; t < layer.terms; ++t) {
          add_term<units>(layer.term[t], unit, 0, masked_mlp_known(sample_, layer.term[t].source, first_), part, sums);
        }
        for (int u = 0; u < units; ++u) {
          for (int v = 0; v < Vectors; ++v) sums[u][v].store(out + ((unit + u) * Vectors + v) * lanes);
        }
      });
    }
  }

  void begin_uniforms(int64_t begin, int64_t end) {
    if (sample_.head.kind != HeadKind::bernoulli) return;
    for (int64_t r = 0; r < rows_; ++r) {
      double uniform[most_block];
      philox_uniforms(sample_.seed, number(r), end - begin, [&](int64_t i) { return variable(begin + i); }, uniform);
      for (int64_t i = 0; i < end - begin; ++i) memory_.uniforms[(begin - first_ + i) * width + r] = uniform[i];
    }
  }

  // The rest of these units' sums, and their activation.
  void finish(int64_t l, MaskedMlpRange range) {
    const MaskedMlpLayer& layer = sample_.layers[l];
    T* const out = output(l);
    const T* const added = layer.add < 0 ? nullptr : value(layer.add);
    in_groups(range, [&](int64_t unit, auto units) {
      Vec<T> sums[units][Vectors];
      for (int u = 0; u < units; ++u) {
        for (int v = 0; v < Vectors; ++v) sums[u][v] = Vec<T>::loadu(out + ((unit + u) * Vectors + v) * lanes);
      }
      for (int t = 0; t < layer.terms; ++t) {
        const int64_t source = layer.term[t].source;
        add_term<units>(layer.term[t], unit, masked_mlp_known(sample_, source, first_),
                        masked_mlp_width(sample_, source), 0, sums);
      }
      for (int u = 0; u < units; ++u) {
        for (int v = 0; v < Vectors; ++v) {
          const int64_t at = ((unit + u) * Vectors + v) * lanes;
          Vec<T> sum = sums[u][v];
          if (added != nullptr) sum = sum + Vec<T>::loadu(added + at);
          (layer.activated ? activate<T>(sample_.activation, sum) : sum).store(out + at);
        }
      }
    });
  }

  int64_t variable(int64_t p) const { return sample_.order == nullptr ? p : sample_.order[p]; }

  uint64_t number(int64_t r) const { return static_cast<uint64_t>(sample_.first_index + row_ + r); }

  // Where a row's value of a variable is known, its place in given; else null.
  const T* known_value(int64_t r, int64_t variable) const {
    const int64_t at = (row_ + r) * sample_.variables + variable;
    return sample_.known == nullptr || sample_.known[at] == 0 ? nullptr : static_cast<const T*>(sample_.given) + at;
  }

  void draw(int64_t p) {
    T* const value = memory_.values + (p - first_) * width;
    if (sample_.head.kind == HeadKind::bernoulli) {
      draw_bernoulli(p, value);
    } else {
      draw_head(p, value);
    }
    const MaskedMlpRange columns = masked_mlp_columns(sample_, p);
    const bool one = columns.end - columns.begin == 1;
    for (int64_t c = columns.begin; c < columns.end; ++c) {
      T* out = memory_.features + c * width;
      for (int64_t r = 0; r < width; ++r) out[r] = one ? value[r] : value[r] == static_cast<T>(c - columns.begin) ? T(1) : T(0);
    }
  }

  // One parameter each: the rows stay in lanes.
  void draw_bernoulli(int64_t p, T* value) {
    const T* const logits = output(sample_.hidden_layers) + p * width;
    const double* const uniforms = memory_.uniforms + (p - first_) * width;
    const Vec<T> temperature(static_cast<T>(sample_.temperature));
    T probability[width];
    for (int v = 0; v < Vectors; ++v) {
      sigmoid<T>(Vec<T>::loadu(logits + v * lanes) / temperature).store(probability + v * lanes);
    }
    for (int64_t r = 0; r < width; ++r) value[r] = uniforms[r] < static_cast<double>(probability[r]) ? T(1) : T(0);
    if (sample_.known == nullptr) return;
    for (int64_t r = 0; r < rows_; ++r) {
      if (const T* known = known_value(r, variable(p))) value[r] = *known;
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
      if (const T* known = known_value(r, variable(p))) {
        value[r] = *known;
        continue;
      }
      T* const own = memory_.parameters + r * memory_.most_parameters;
      for (int64_t j = 0; j < count; ++j) own[j] = lanes_of_rows[j * width + r];
      value[r] = head_draw_one(sample_.head.of(p), own, count, sample_.seed, number(r), static_cast<uint32_t>(variable(p)),
                               static_cast<T>(sample_.temperature), memory_.weights);
      log_prob_[r] += static_cast<double>(head_log_prob_one(sample_.head.of(p), own, count, value[r]));
    }
  }

  // What nobody waits for: the values in the caller's rows, and the log-probability of Bernoulli variables.
  void end_block(int64_t begin, int64_t end) {
    const int64_t count = sample_.stop - sample_.start;
    for (int64_t r = 0; r < rows_; ++r) {
      T* const out = static_cast<T*>(sample_.values) + (row_ + r) * count - sample_.start;
      for (int64_t p = begin; p < end; ++p) out[p] = memory_.values[(p - first_) * width + r];
    }
    if (sample_.head.kind != HeadKind::bernoulli) return;
    for (int64_t p = begin; p < end; ++p) {
      const T* const logits = output(sample_.hidden_layers) + p * width;
      const T* const value = memory_.values + (p - first_) * width;
      T normalizer[width];
      for (int v = 0; v < Vectors; ++v) {
        softplus<T>(Vec<T>::loadu(logits + v * lanes)).store(normalizer + v * lanes);
      }
      const auto term = [&](int64_t r) {
        return static_cast<double>(value[r]) * static_cast<double>(logits[r]) - static_cast<double>(normalizer[r]);
      };
      if (sample_.known == nullptr) {
        for (int64_t r = 0; r < width; ++r) log_prob_[r] += term(r);
      } else {
        for (int64_t r = 0; r < rows_; ++r) {
          if (known_value(r, variable(p)) == nullptr) log_prob_[r] += term(r);
        }
      }
    }
  }

  const MaskedMlpSample& sample_;
  const MaskedMlpTeam team_;
  const int64_t row_, rows_;
  const Memory<T> memory_;
  int64_t first_ = 0, first_parameter_ = 0;  // of the block: its position, its first parameter
  int64_t multiply_adds_[masked_mlp_most_parts] = {};
  double log_prob_[width] = {};
};

template <typename S, typename T>
int64_t run_group(const MaskedMlpSample& sample, int64_t row_begin, int64_t row_end, const MaskedMlpTeam& team,
                  void* scratch) {
  switch ((row_end - row_begin + Vec<T>::size() - 1) / Vec<T>::size()) {
    case 1: return Group<S, T, 1>(sample, row_begin, row_end, team, scratch).run();
    case 2: return Group<S, T, 2>(sample, row_begin, row_end, team, scratch).run();
    default: return Group<S, T, most_vectors>(sample, row_begin, row_end, team, scratch).run();
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
  switch (sample.storage) {
    case ScalarType::float32:
      *multiply_adds = run_group<float, float>(sample, row_begin, row_end, team, scratch);
      return;
    case ScalarType::float64:
      *multiply_adds = run_group<double, double>(sample, row_begin, row_end, team, scratch);
      return;
    case ScalarType::bfloat16:
      *multiply_adds = run_group<bfloat16, float>(sample, row_begin, row_end, team, scratch);
      return;
    case ScalarType::float16:
      *multiply_adds = run_group<float16, float>(sample, row_begin, row_end, team, scratch);
      return;
  }
}

}  // namespace ar_fast::CPU_CAPABILITY
