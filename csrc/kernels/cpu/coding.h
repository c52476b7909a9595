// The rule of Draws by which values are coded and not drawn (kernels/draws.h): the value of a variable from its
// parameters and a stream, or, where the value is there already, the interval that stands for it in the stream.
#pragma once

#include "../draws.h"
#include "head_math.h"

namespace ar_fast::CPU_CAPABILITY {

// weights[k] = exp((l_k - the greatest l) / temperature)
template <typename T>
inline void category_weights(const T* logits, int64_t count, T temperature, T* weights) {
  Vec<T> largest(logits[0]);
  for_lanes<T>(count, [&](int64_t k, int64_t n) {
    largest = at::vec::maximum(largest, Vec<T>::set(Vec<T>(logits[0]), load_lanes(logits + k, n), n));
  });
  T maxima[Vec<T>::size()];
  largest.store(maxima);
  T maximum = maxima[0];
  for (int i = 1; i < Vec<T>::size(); ++i) maximum = maxima[i] > maximum ? maxima[i] : maximum;
  for_lanes<T>(count, [&](int64_t k, int64_t n) {
    store_lanes<T>(((load_lanes(logits + k, n) - Vec<T>(maximum)) / Vec<T>(temperature)).exp(), weights + k, n);
  });
}

// The share of the bins below each level of a logistic mixture. It is in double, so that it ascends but for its last
// digits, which range_bound allows for.
template <typename T>
class LevelShares {
 public:
  // weights: [mixture.count] scratch.
  LevelShares(const Mixture<T>& mixture, T* weights) : mixture_(mixture), weights_(weights) {
    category_weights(mixture.logits, mixture.count, T(1), weights);
    for (int64_t k = 0; k < mixture.count; ++k) total_ += static_cast<double>(weights[k]);
  }
  double operator()(int64_t level) const {
    constexpr int64_t width = Vec<double>::size();
    const double edge = (2.0 * static_cast<double>(level) - 1.0) / static_cast<double>(mixture_.head.levels - 1) - 1.0;
    const Vec<double> one(1.0), most(head_largest_distance), least(head_minimum_log_scale);
    double sum = 0;
    for (int64_t k = 0; k < mixture_.count; k += width) {
      const int64_t n = mixture_.count - k < width ? mixture_.count - k : width;
      double weight[width] = {}, mean[width] = {}, raw[width] = {};
      for (int64_t i = 0; i < n; ++i) {
        weight[i] = static_cast<double>(weights_[k + i]);
        mean[i] = static_cast<double>(mixture_.means[k + i]);
        raw[i] = static_cast<double>(mixture_.log_scales[k + i]);
      }
      const Vec<double> inverse = at::vec::maximum(Vec<double>::loadu(raw), least).neg().exp();
      const Vec<double> z =
          at::vec::clamp((Vec<double>(edge) - Vec<double>::loadu(mean)) * inverse, most.neg(), most);
      sum += horizontal_sum<double>(Vec<double>::loadu(weight) / (one + z.neg().exp()));
    }
    return sum / total_;
  }

 private:
  const Mixture<T> mixture_;
  const T* weights_;
  double total_ = 0;
};

// Codes one of `symbols`: the given one, or the one that the row's stream holds. share(k) is the probability of all
// symbols before symbol k.
template <typename Share>
inline int64_t code_symbol(const Draws& draws, int64_t row, int64_t position, int64_t symbol, int64_t symbols,
                           const Share& share) {
  const int32_t precision = range_precision(symbols);
  const auto bound = [&](int64_t k) { return range_bound(k, share(k), symbols, precision); };
  if (draws.coding.intervals != nullptr) {
    symbol = symbol < 0 ? 0 : symbol >= symbols ? symbols - 1 : symbol;
    const uint32_t begin = symbol == 0 ? 0 : bound(symbol);
    const uint32_t end = symbol + 1 == symbols ? uint32_t{1} << precision : bound(symbol + 1);
    draws.coding.intervals[row * (draws.stop - draws.start) + position - draws.start] = {begin, end - begin, precision};
    return symbol;
  }
  if (symbols == 1) return 0;
  RangeDecoder& decoder = draws.coding.decoders[row];
  const uint32_t quantile = decoder.quantile(precision);
  int64_t low = 0, high = symbols;
  uint32_t begin = 0, end = uint32_t{1} << precision;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    const uint32_t here = bound(middle);
    (here <= quantile ? low : high) = middle;
    (here <= quantile ? begin : end) = here;
  }
  decoder.take({begin, end - begin, precision});
  return low;
}

// The value of a Bernoulli variable.
template <typename T>
inline T code_bernoulli(const Draws& draws, int64_t row, int64_t position, T logit) {
  T zero_share[Vec<T>::size()];
  sigmoid<T>(Vec<T>(-logit)).store(zero_share);
  const int64_t given = draws.value_to_encode<T>(row, position) > T(0.5);
  return static_cast<T>(code_symbol(draws, row, position, given, 2,
                                    [&](int64_t) { return static_cast<double>(zero_share[0]); }));
}

// The value of a variable of any head but a Gaussian mixture, from its `rows` parameters; weights: [rows] scratch.
template <typename T>
inline T code_value(const Draws& draws, int64_t row, int64_t position, const T* parameters, int64_t rows, T* weights) {
  const Head head = draws.head_at(position);
  const T given = draws.value_to_encode<T>(row, position);
  if (head.kind == HeadKind::bernoulli) return code_bernoulli(draws, row, position, parameters[0]);
  if (head.kind == HeadKind::categorical) {
    category_weights(parameters, rows, T(1), weights);
    // The running sums are asked for in any order: some are kept, from which the others go on.
    constexpr int64_t kept = 64;
    const int64_t step = (rows + kept - 1) / kept;
    double sums[kept], total = 0;
    for (int64_t k = 0; k < rows; ++k) {
      if (k % step == 0) sums[k / step] = total;
      total += static_cast<double>(weights[k]);
    }
    return static_cast<T>(code_symbol(draws, row, position, static_cast<int64_t>(given), rows, [&](int64_t symbol) {
      double sum = sums[symbol / step];
      for (int64_t k = symbol / step * step; k < symbol; ++k) sum += static_cast<double>(weights[k]);
      return sum / total;
    }));
  }
  const double steps = static_cast<double>(head.levels - 1);
  const LevelShares<T> shares(Mixture<T>(head, parameters, rows), weights);
  const auto level = static_cast<int64_t>(std::nearbyint((static_cast<double>(given) + 1) / 2 * steps));
  return static_cast<T>(
      2 * static_cast<double>(code_symbol(draws, row, position, level, head.levels, shares)) / steps - 1);
}

}  // namespace ar_fast::CPU_CAPABILITY
