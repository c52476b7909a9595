#include "masked_linear_cpu.h"

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include "vec_math.h"

namespace ar_fast {
namespace CPU_CAPABILITY {
namespace {

template <typename Storage>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

template <typename Compute>
using Vector = at::vec::Vectorized<Compute>;

// Calls body with a value of the C++ type of the storage.
template <typename Body>
void with_storage(ScalarType storage, const Body& body) {
  switch (storage) {
    case ScalarType::float32: return body(float{});
    case ScalarType::float64: return body(double{});
    case ScalarType::bfloat16: return body(c10::BFloat16{});
    case ScalarType::float16: return body(c10::Half{});
  }
}

// packed[j] = row[columns[j]] for j in [0, count)
template <typename Storage, typename Compute>
void gather(const Storage* row, const int32_t* columns, int64_t count, Compute* packed) {
  for (int64_t j = 0; j < count; ++j) packed[j] = static_cast<Compute>(row[columns[j]]);
}

template <typename Storage, typename Compute>
void convert(const Storage* row, int64_t count, Compute* packed) {
  if constexpr (std::is_same_v<Storage, Compute>) {
    copy_values(row, count, packed);
  } else {
    for (int64_t j = 0; j < count; ++j) packed[j] = static_cast<Compute>(row[j]);
  }
}

template <typename Storage, typename Compute>
void select(const Storage* row, const uint8_t* allowed, int64_t count, Compute* packed) {
  for (int64_t j = 0; j < count; ++j) {
    const Compute weight = static_cast<Compute>(row[j]);
    packed[j] = allowed[j] ? weight : Compute(0);
  }
}

template <typename Storage, typename Compute>
void select(const Storage* row, const int32_t* rank, int32_t extent, int64_t count, Compute* packed) {
  for (int64_t j = 0; j < count; ++j) {
    const Compute weight = static_cast<Compute>(row[j]);
    packed[j] = rank[j] < extent ? weight : Compute(0);
  }
}

// The columns [begin, end) of one row of the weight in its own column order, masked. Returns a pointer to column
// `begin`, which points into the weight itself if nothing has to be written. `end` becomes the end of allowed inputs.
template <typename Storage, typename Compute>
const Compute* masked_row(const MaskedRows& arguments, int64_t row, int64_t begin, int64_t& end, Compute* scratch) {
  const MaskPlan& plan = arguments.plan;
  const Storage* weight = static_cast<const Storage*>(arguments.weight) + row * plan.in_features + begin;
  if (plan.dense != nullptr) {
    select(weight, plan.dense + row * plan.in_features + begin, end - begin, scratch);
    return scratch;
  }
  if (arguments.rank != nullptr) {
    if (plan.extents[row] == 0) end = begin;
    select(weight, arguments.rank + begin, plan.extents[row], end - begin, scratch);
    return scratch;
  }
  end = std::max<int64_t>(begin, std::min<int64_t>(end, plan.extents[row]));
  if constexpr (std::is_same_v<Storage, Compute>) {
    return weight;
  } else {
    convert(weight, end - begin, scratch);
    return scratch;
  }
}

template <typename Compute>
Compute horizontal_sum(const Vector<Compute>& vector) {
  return at::vec::vec_reduce_all<Compute>([](const Vector<Compute>& a, const Vector<Compute>& b) { return a + b; },
                                          vector);
}

// sums[b] = weight . input[b] for Rows rows of input.
template <int Rows, typename Compute>
void dot_rows(const Compute* weight, const Compute* input, int64_t input_stride, int64_t count, Compute* sums) {
  using Vec = Vector<Compute>;
  constexpr int lanes = Vec::size();
  constexpr int unroll = Rows == 1 ? 4 : 2;
  Vec total[Rows][unroll];
  for (int b = 0; b < Rows; ++b) {
    for (int u = 0; u < unroll; ++u) total[b][u] = Vec(Compute(0));
  }
  int64_t k = 0;
  for (; k + lanes * unroll <= count; k += lanes * unroll) {
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      const Vec w = Vec::loadu(weight + k + u * lanes);
#pragma GCC unroll 4
      for (int b = 0; b < Rows; ++b) {
        total[b][u] = at::vec::fmadd(w, Vec::loadu(input + b * input_stride + k + u * lanes), total[b][u]);
      }
    }
  }
  for (; k < count; k += lanes) {
    const int64_t rest = std::min<int64_t>(lanes, count - k);
    const Vec w = Vec::loadu(weight + k, rest);
    for (int b = 0; b < Rows; ++b) {
      total[b][0] = at::vec::fmadd(w, Vec::loadu(input + b * input_stride + k, rest), total[b][0]);
    }
  }
  for (int b = 0; b < Rows; ++b) {
    for (int u = 1; u < unroll; ++u) total[b][0] = total[b][0] + total[b][u];
    sums[b] = horizontal_sum(total[b][0]);
  }
}

// total[b] += factors[b] weight for Rows rows of total.
template <int Rows, typename Compute>
void add_scaled(const Compute* weight, const Compute* factors, int64_t factor_stride, int64_t count, Compute* total,
                int64_t total_stride) {
  using Vec = Vector<Compute>;
  constexpr int lanes = Vec::size();
  Vec factor[Rows];
  for (int b = 0; b < Rows; ++b) factor[b] = Vec(factors[b * factor_stride]);
  int64_t k = 0;
  for (; k + lanes <= count; k += lanes) {
    const Vec w = Vec::loadu(weight + k);
#pragma GCC unroll 4
    for (int b = 0; b < Rows; ++b) {
      Compute* place = total + b * total_stride + k;
      at::vec::fmadd(w, factor[b], Vec::loadu(place)).store(place);
    }
  }
  if (k < count) {
    const Vec w = Vec::loadu(weight + k, count - k);
    for (int b = 0; b < Rows; ++b) {
      Compute* place = total + b * total_stride + k;
      at::vec::fmadd(w, factor[b], Vec::loadu(place, count - k)).store(place, count - k);
    }
  }
}

template <typename Compute>
void activate_in_place(Activation activation, Compute* values, int64_t count) {
  constexpr int lanes = Vector<Compute>::size();
  int64_t k = 0;
  for (; k + lanes <= count; k += lanes) {
    activate<Compute>(activation, Vector<Compute>::loadu(values + k)).store(values + k);
  }
  if (k < count) {
    activate<Compute>(activation, Vector<Compute>::loadu(values + k, count - k)).store(values + k, count - k);
  }
}

template <typename Storage>
void forward_rows(const MaskedRows& arguments, int64_t row_begin, int64_t row_end) {
  using Compute = typename ComputeOf<Storage>::type;
  const int64_t columns = arguments.plan.in_features, rows = arguments.plan.out_features;
  const auto* input = static_cast<const Compute*>(arguments.input);
  const auto* bias = static_cast<const Compute*>(arguments.bias);
  auto* output = static_cast<Compute*>(arguments.output);
  for (int64_t row = row_begin; row < row_end; ++row) {
    int64_t end = columns;
    const Compute* weight = masked_row<Storage>(arguments, row, 0, end, static_cast<Compute*>(arguments.scratch));
    const Compute offset = bias == nullptr ? Compute(0) : bias[row];
    int64_t b = 0;
    Compute sums[4];
    for (; b + 4 <= arguments.batch; b += 4) {
      dot_rows<4>(weight, input + b * columns, columns, end, sums);
      for (int i = 0; i < 4; ++i) output[(b + i) * rows + row] = sums[i] + offset;
    }
    for (; b < arguments.batch; ++b) {
      dot_rows<1>(weight, input + b * columns, columns, end, sums);
      output[b * rows + row] = sums[0] + offset;
    }
  }
  if (arguments.activation == Activation::none) return;
  for (int64_t b = 0; b < arguments.batch; ++b) {
    activate_in_place(arguments.activation, output + b * rows + row_begin, row_end - row_begin);
  }
}

template <typename Storage>
void grad_input_columns(const MaskedRows& arguments, int64_t column_begin, int64_t column_end) {
  using Compute = typename ComputeOf<Storage>::type;
  const int64_t columns = arguments.plan.in_features, rows = arguments.plan.out_features;
  const auto* grad_output = static_cast<const Compute*>(arguments.grad_output);
  auto* output = static_cast<Compute*>(arguments.output);
  // A strip of every row's gradient stays in L1 while all rows of the weight are read.
  const int64_t strip = 512;
  for (int64_t begin = column_begin; begin < column_end; begin += strip) {
    const int64_t strip_end = std::min(column_end, begin + strip);
    for (int64_t b = 0; b < arguments.batch; ++b) {
      set_zero(output + b * columns + begin, strip_end - begin);
    }
    for (int64_t row = 0; row < rows; ++row) {
      int64_t end = strip_end;
      const Compute* weight = masked_row<Storage>(arguments, row, begin, end, static_cast<Compute*>(arguments.scratch));
      if (end <= begin) continue;
      int64_t b = 0;
      for (; b + 4 <= arguments.batch; b += 4) {
        add_scaled<4>(weight, grad_output + b * rows + row, rows, end - begin, output + b * columns + begin, columns);
      }
      for (; b < arguments.batch; ++b) {
        add_scaled<1>(weight, grad_output + b * rows + row, rows, end - begin, output + b * columns + begin, columns);
      }
    }
  }
}

template <typename Storage, typename Compute>
void write_masked_row(const MaskPlan& plan, const int32_t* rank, int64_t row, const Compute* values, Storage* out) {
  if (plan.dense != nullptr) {
    const uint8_t* allowed = plan.dense + row * plan.in_features;
    for (int64_t c = 0; c < plan.in_features; ++c) out[c] = static_cast<Storage>(allowed[c] ? values[c] : Compute(0));
  } else if (rank != nullptr) {
    const int32_t extent = plan.extents[row];
    for (int64_t c = 0; c < plan.in_features; ++c) {
      out[c] = static_cast<Storage>(rank[c] < extent ? values[c] : Compute(0));
    }
  } else {
    const int64_t extent = plan.extents[row];
    convert(values, extent, out);
    set_zero(out + extent, plan.in_features - extent);
  }
}

template <typename Storage>
void grad_weight_rows(const MaskedRows& arguments, int64_t row_begin, int64_t row_end) {
  using Compute = typename ComputeOf<Storage>::type;
  const MaskPlan& plan = arguments.plan;
  const int64_t columns = plan.in_features, rows = plan.out_features;
  const auto* input = static_cast<const Compute*>(arguments.input);
  const auto* grad_output = static_cast<const Compute*>(arguments.grad_output);
  auto* sum = static_cast<Compute*>(arguments.scratch);
  const bool prefix = plan.dense == nullptr && arguments.rank == nullptr;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t end = prefix ? plan.extents[row] : columns;
    set_zero(sum, end);
    for (int64_t b = 0; b < arguments.batch; ++b) {
      add_scaled<1>(input + b * columns, grad_output + b * rows + row, rows, end, sum, columns);
    }
    write_masked_row(plan, arguments.rank, row, sum, static_cast<Storage*>(arguments.output) + row * columns);
  }
}

template <typename Storage>
void pack(const MaskPlan& plan, const void* weight, const MaskedRectangle& at, void* packed) {
  using Compute = typename ComputeOf<Storage>::type;
  const int64_t width = at.column_end - at.column_begin;
  auto* out = static_cast<Compute*>(packed);
  for (int64_t r = at.row_begin; r < at.row_end; ++r, out += width) {
    const int64_t row = plan.rows == nullptr ? r : plan.rows[r];
    const Storage* source = static_cast<const Storage*>(weight) + row * plan.in_features;
    if (plan.dense != nullptr) {
      select(source + at.column_begin, plan.dense + row * plan.in_features + at.column_begin, width, out);
      continue;
    }
    const int64_t allowed = std::max<int64_t>(0, std::min<int64_t>(width, plan.extents[row] - at.column_begin));
    if (plan.columns == nullptr) {
      convert(source + at.column_begin, allowed, out);
    } else {
      gather(source, plan.columns + at.column_begin, allowed, out);
    }
    set_zero(out + allowed, width - allowed);
  }
}

template <typename Storage>
void unpack(const MaskPlan& plan, const int32_t* rank, const void* packed, const MaskedRectangle& at, void* weight) {
  using Compute = typename ComputeOf<Storage>::type;
  const int64_t width = at.column_end - at.column_begin;
  const auto* values = static_cast<const Compute*>(packed);
  for (int64_t r = at.row_begin; r < at.row_end; ++r, values += width) {
    const int64_t row = plan.rows == nullptr ? r : plan.rows[r];
    Storage* out = static_cast<Storage*>(weight) + row * plan.in_features;
    if (plan.dense != nullptr) {
      const uint8_t* allowed = plan.dense + row * plan.in_features;
      for (int64_t j = 0; j < width; ++j) {
        const int64_t c = at.column_begin + j;
        out[c] = static_cast<Storage>(allowed[c] ? values[j] : Compute(0));
      }
    } else if (rank != nullptr) {
      const int32_t extent = plan.extents[row];
      set_zero(out, plan.in_features);
      for (int32_t j = 0; j < extent; ++j) out[plan.columns[j]] = static_cast<Storage>(values[j]);
    } else {
      write_masked_row(plan, nullptr, row, values, out);
    }
  }
}

template <typename Storage>
void copy_rows(const MaskedRows& arguments, int64_t row_begin, int64_t row_end) {
  using Compute = typename ComputeOf<Storage>::type;
  const int64_t columns = arguments.plan.in_features;
  auto* out = static_cast<Compute*>(arguments.output);
  for (int64_t row = row_begin; row < row_end; ++row, out += columns) {
    int64_t end = columns;
    const Compute* weight = masked_row<Storage>(arguments, row, 0, end, out);
    if (weight != out) copy_values(weight, end, out);
    set_zero(out + end, columns - end);
  }
}

template <typename Storage>
void mend_rows(const MaskedRows& arguments, int64_t row_begin, int64_t row_end) {
  using Compute = typename ComputeOf<Storage>::type;
  const MaskPlan& plan = arguments.plan;
  const bool forward = arguments.grad_output == nullptr;
  const int64_t features = forward ? plan.out_features : plan.in_features;
  const int64_t steps = forward ? plan.in_features : plan.out_features;
  const auto* operand = static_cast<const Compute*>(forward ? arguments.input : arguments.grad_output);
  const auto* weight = static_cast<const Storage*>(arguments.weight);
  const auto* bias = static_cast<const Compute*>(arguments.bias);
  auto* output = static_cast<Compute*>(arguments.output);
  const auto allowed = [&](int64_t row, int64_t column) {
    if (plan.dense != nullptr) return plan.dense[row * plan.in_features + column] != 0;
    return (arguments.rank == nullptr ? column : arguments.rank[column]) < plan.extents[row];
  };
  for (int64_t b = row_begin; b < row_end; ++b) {
    Compute* const values = output + b * features;
    if (!may_hold_nan(values, features)) continue;
    for (int64_t f = 0; f < features; ++f) {
      if (values[f] == values[f]) continue;
      Compute sum = bias == nullptr ? Compute(0) : bias[f];
      for (int64_t s = 0; s < steps; ++s) {
        const int64_t row = forward ? f : s, column = forward ? s : f;
        if (!allowed(row, column)) continue;
        sum += static_cast<Compute>(weight[row * plan.in_features + column]) * operand[b * steps + s];
      }
      if (forward && arguments.activation != Activation::none) activate_in_place(arguments.activation, &sum, 1);
      values[f] = sum;
    }
  }
}

template <typename Storage>
void clear(const MaskPlan& plan, int64_t row_begin, int64_t row_end, void* weight) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    Storage* out = static_cast<Storage*>(weight) + row * plan.in_features;
    if (plan.dense != nullptr) {
      select(out, plan.dense + row * plan.in_features, plan.in_features, out);
    } else {
      set_zero(out + plan.extents[row], plan.in_features - plan.extents[row]);
    }
  }
}

}  // namespace

void masked_pack(ScalarType storage, const MaskPlan& plan, const void* weight, const MaskedRectangle& rectangle,
                 void* packed) {
  with_storage(storage, [&](auto type) { pack<decltype(type)>(plan, weight, rectangle, packed); });
}

void masked_unpack(ScalarType storage, const MaskPlan& plan, const int32_t* rank, const void* packed,
                   const MaskedRectangle& rectangle, void* weight) {
  with_storage(storage, [&](auto type) { unpack<decltype(type)>(plan, rank, packed, rectangle, weight); });
}

void masked_clear(ScalarType storage, const MaskPlan& plan, int64_t row_begin, int64_t row_end, void* weight) {
  with_storage(storage, [&](auto type) { clear<decltype(type)>(plan, row_begin, row_end, weight); });
}

void masked_copy_rows(const MaskedRows& arguments, int64_t row_begin, int64_t row_end) {
  with_storage(arguments.storage, [&](auto type) { copy_rows<decltype(type)>(arguments, row_begin, row_end); });
}

void masked_mend_rows(const MaskedRows& arguments, int64_t row_begin, int64_t row_end) {
  with_storage(arguments.storage, [&](auto type) { mend_rows<decltype(type)>(arguments, row_begin, row_end); });
}

void masked_forward_rows(const MaskedRows& arguments, int64_t row_begin, int64_t row_end) {
  with_storage(arguments.storage, [&](auto type) { forward_rows<decltype(type)>(arguments, row_begin, row_end); });
}

void masked_grad_input_columns(const MaskedRows& arguments, int64_t column_begin, int64_t column_end) {
  with_storage(arguments.storage,
               [&](auto type) { grad_input_columns<decltype(type)>(arguments, column_begin, column_end); });
}

void masked_grad_weight_rows(const MaskedRows& arguments, int64_t row_begin, int64_t row_end) {
  with_storage(arguments.storage, [&](auto type) { grad_weight_rows<decltype(type)>(arguments, row_begin, row_end); });
}

}  // namespace CPU_CAPABILITY
}  // namespace ar_fast
