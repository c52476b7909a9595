// Masked linear maps over strips of a sorted staircase: the choice of strips, and what torch's GEMM, which makes their
// products, cannot do: zeros where a strip of the weight is masked, and in the gradient of the weight; products of such
// a zero with what is not finite; activations.
#include <algorithm>

#include "activation.h"
#include "masked_linear_device.h"

namespace ar_fast::cuda {
namespace {

using Product = MaskedLinearProduct;

constexpr int kThreads = 128;
constexpr int kAhead = 8;  // vectors of a thread under way

template <typename S>
struct CopyArguments {
  const S* weight;
  const int32_t* extents;
  int in_features;
  S* buffer;
  MaskedStrips strips;
  int first;
};

// A block has a row of one of the strips. Of its vectors, all but the one that the staircase cuts are copied or zero.
template <typename S>
__global__ void __launch_bounds__(kThreads) masked_linear_copy_kernel(CopyArguments<S> arguments) {
  constexpr int size = Vector<S>::size, width = kThreads * size;
  const MaskedStrip& strip = arguments.strips.strip[arguments.first + static_cast<int>(blockIdx.y)];
  const int r = static_cast<int>(blockIdx.x), columns = strip.column_end - strip.column;
  if (strip.whole || strip.row + r >= strip.row_end) return;  // a whole block
  const int seen = arguments.extents[strip.row + r] - strip.column;
  const S* const from = arguments.weight + static_cast<int64_t>(strip.row + r) * arguments.in_features + strip.column;
  S* const to = arguments.buffer + strip.offset + static_cast<int64_t>(r) * columns;
  const int whole = min(max(seen, 0), columns) / size * size;
  for (int base = static_cast<int>(threadIdx.x) * size; base < columns; base += kAhead * width) {
    Vector<S> weight[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      weight[k] = load_vector(from + (base + k * width < whole ? base + k * width : base));
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int c = base + k * width;
      if (c >= columns) break;
      store_vector(to + c, c < whole ? weight[k] : Vector<S>{});
    }
  }
  // The thread that made this vector zero.
  if (whole / size % kThreads != static_cast<int>(threadIdx.x)) return;
#pragma unroll 1
  for (int c = whole; c < min(seen, columns); ++c) to[c] = from[c];
}

template <typename S>
struct FinishArguments {
  DeviceMask mask;
  const S *other, *weight, *bias;  // other: the input for y, the gradient of the output for dX
  int64_t other_stride;
  Activation activation;
  S* output;
  int columns;
  int64_t vectors;                 // of the output
};

// Row b and column c of y or dX, from the weights that the mask allows.
template <Product product, typename S>
__device__ __forceinline__ float sum_of_allowed(const FinishArguments<S>& arguments, int64_t b, int c) {
  const DeviceMask& mask = arguments.mask;
  const S* const other = arguments.other + b * arguments.other_stride;
  const int terms = product == Product::y ? mask.extents[c] : mask.out_features;
  float sum = 0;
#pragma unroll 1
  for (int s = 0; s < terms; ++s) {
    const int row = product == Product::y ? c : s, column = product == Product::y ? s : c;
    if (product == Product::grad_input && mask.extents[s] <= c) continue;
    const S weight = arguments.weight[static_cast<int64_t>(row) * mask.in_features + column];
    sum = fma(to_compute(weight), to_compute(other[s]), sum);
  }
  return product == Product::y && arguments.bias != nullptr ? sum + to_compute(arguments.bias[c]) : sum;
}

// A look at every output, since a masked weight was multiplied as a zero: its product with what is not finite is NaN.
// So what is NaN is computed again. Then the activation, of the rounded sum.
template <typename S, Product product>
__global__ void __launch_bounds__(kThreads) masked_linear_finish_kernel(FinishArguments<S> arguments) {
  constexpr int size = Vector<S>::size;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kAhead + threadIdx.x;
  const auto place = [&](int k) { return first + k * kThreads; };
  if (first >= arguments.vectors) return;
  Vector<S> read[kAhead];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    read[k] = load_shared_vector(arguments.output + (place(k) < arguments.vectors ? place(k) : first) * size);
  }
  bool not_a_number = false;
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
#pragma unroll
    for (int i = 0; i < size; ++i) {
      const float value = to_compute(read[k].values[i]);
      not_a_number = not_a_number || value != value;
    }
  }
  if (not_a_number) {
#pragma unroll 1
    for (int k = 0; k < kAhead * size; ++k) {
      if (place(k / size) >= arguments.vectors) break;
      const int64_t element = place(k / size) * size + k % size;
      S& stored = arguments.output[element];
      if (to_compute(stored) == to_compute(stored)) continue;
      from_compute(stored, sum_of_allowed<product>(arguments, element / arguments.columns,
                                                   static_cast<int>(element % arguments.columns)));
    }
  }
  if (product != Product::y || arguments.activation == Activation::none) return;
#pragma unroll 1
  for (int k = 0; k < kAhead; ++k) {
    if (place(k) >= arguments.vectors) break;
    S* const output = arguments.output + place(k) * size;
    Vector<S> values = load_shared_vector(output);
#pragma unroll
    for (int i = 0; i < size; ++i) {
      from_compute(values.values[i], activate(arguments.activation, to_compute(values.values[i])));
    }
    store_vector(output, values);
  }
}

// Zeros where the mask allows nothing, of a row of the gradient of the weight.
template <typename S>
__global__ void __launch_bounds__(kThreads)
    masked_linear_clear_kernel(const int32_t* extents, int in_features, S* output) {
  constexpr int size = Vector<S>::size;
  const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int seen = extents[row], whole = (seen + size - 1) / size * size;
  S* const to = output + static_cast<int64_t>(row) * in_features;
  if (seen + thread < whole) to[seen + thread] = S{};
  for (int c = whole + thread * size; c < in_features; c += kThreads * size) store_vector(to + c, Vector<S>{});
}

// Of 16 bits.
template <typename Body>
cudaError_t dispatch_16bit(ScalarType storage, const Body& body) {
  return storage == ScalarType::bfloat16 ? body(bfloat16{}) : body(float16{});
}

template <typename S, Product product>
cudaError_t launch_finish(const MaskedLinear& m, cudaStream_t stream) {
  const bool y = product == Product::y;
  const int64_t columns = y ? m.mask.out_features : m.mask.in_features;
  const FinishArguments<S> arguments{DeviceMask(m.mask),
                                     static_cast<const S*>(y ? m.input : m.grad_output),
                                     static_cast<const S*>(m.weight),
                                     static_cast<const S*>(m.bias),
                                     y ? m.input_stride : m.grad_output_stride,
                                     m.activation,
                                     static_cast<S*>(m.output),
                                     static_cast<int>(columns),
                                     m.batch * columns / Vector<S>::size};
  const unsigned blocks = blocks_of(arguments.vectors, kThreads * kAhead);
  return launch({"masked_linear_finish", dim3(blocks), kThreads, 0, stream}, masked_linear_finish_kernel<S, product>,
                arguments);
}

// Waves of a product's tiles on a GPU, times the length of its sum.
int64_t duration(int64_t rows, int64_t columns, int64_t sum, int multiprocessors) {
  const auto waves = [&](int64_t down, int64_t across) {
    const int64_t tiles = static_cast<int64_t>(blocks_of(rows, down)) * blocks_of(columns, across);
    return (tiles + multiprocessors - 1) / multiprocessors;
  };
  return std::min(waves(128, 256), waves(256, 128)) * sum;
}

// As many strips as come of so many blocks of rows each; 0 if a part of the weight is larger than may be copied.
int64_t cut_strips(Product product, const MaskedLinear& m, const MaskSteps& steps, int64_t together,
                   int multiprocessors, MaskedStrips& strips) {
  constexpr int64_t per_strip = 512;  // what the launches of a strip cost, as terms of a sum
  const int64_t outputs = m.mask.out_features, inputs = m.mask.in_features, blocks = steps.count - 1;
  const auto edge = [&](int64_t block) {
    const int64_t extent = (steps.extents[block] + mask_tile_size - 1) / mask_tile_size * mask_tile_size;
    return std::min(extent, inputs);
  };
  strips.count = 0;
  int64_t cost = 0;
  const auto add = [&](int64_t row, int64_t row_end, int64_t column, int64_t column_end, bool whole) {
    const int64_t rows = row_end - row, columns = column_end - column;
    if (!whole && rows * columns > strips.buffer_elements) return false;
    strips.strip[strips.count++] = {static_cast<int>(row), static_cast<int>(row_end), static_cast<int>(column),
                                    static_cast<int>(column_end), whole, 0};
    cost += per_strip + (product == Product::y            ? duration(m.batch, rows, columns, multiprocessors)
                         : product == Product::grad_input ? duration(m.batch, columns, rows, multiprocessors)
                                                          : duration(rows, columns, m.batch, multiprocessors));
    return true;
  };
  for (int64_t a = 0; a < blocks; a += together) {
    const int64_t b = std::min(a + together, blocks);
    const bool whole = product == Product::grad_weight || steps.extents[a] >= edge(b);
    if (product == Product::grad_input) {
      const int64_t column = a == 0 ? 0 : edge(a);
      if (column < edge(b) && !add(a * steps.rows, outputs, column, edge(b), whole)) return 0;
    } else if (!add(a * steps.rows, std::min(b * steps.rows, outputs), 0, edge(b), whole)) {
      return 0;
    }
  }
  // Inputs that no row sees.
  if (product == Product::grad_input && edge(blocks) < inputs) add(outputs, outputs, edge(blocks), inputs, true);
  return cost;
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

cudaError_t masked_linear_strips_cuda(MaskedLinearProduct product, const MaskedLinear& m, const MaskSteps& steps,
                                      MaskedStrips& chosen) {
  using namespace cuda;
  chosen.count = 0;
  const bool is_16bit = m.storage == ScalarType::bfloat16 || m.storage == ScalarType::float16;
  const MaskPlan& mask = m.mask;
  if (!is_16bit || m.batch == 0 || steps.count < 2 || mask.out_features % 8 != 0 || mask.in_features % 8 != 0) {
    return cudaSuccess;
  }
  const auto fits = [](const void* matrix, int64_t stride) {
    return vectors_fit(static_cast<const bfloat16*>(matrix), stride);
  };
  if (!fits(m.input, m.input_stride) || !fits(m.weight, 0) || !fits(m.grad_output, m.grad_output_stride)) {
    return cudaSuccess;
  }
  Device device;
  const cudaError_t error = current_device(device);
  if (error != cudaSuccess || device.capability < 8) return error;
  int64_t least = 0;
  for (int64_t together = 1; together <= mask_most_blocks; together *= 2) {
    MaskedStrips strips;
    strips.buffer_elements = std::max(mask.out_features * mask.in_features / 4, int64_t{1} << 22);
    const int64_t cost = cut_strips(product, m, steps, together, device.multiprocessors, strips);
    if (cost > 0 && (chosen.count == 0 || cost < least)) chosen = strips, least = cost;
  }
  return cudaSuccess;
}

cudaError_t masked_linear_copy_cuda(const MaskedLinear& m, const MaskedStrips& strips, int first, int end, void* buffer,
                                    cudaStream_t stream) {
  using namespace cuda;
  unsigned rows = 0;
  for (int i = first; i < end; ++i) {
    const MaskedStrip& strip = strips.strip[i];
    if (!strip.whole) rows = std::max(rows, static_cast<unsigned>(strip.row_end - strip.row));
  }
  if (rows == 0) return cudaSuccess;
  return dispatch_16bit(m.storage, [&](auto type) {
    using S = decltype(type);
    const CopyArguments<S> arguments{static_cast<const S*>(m.weight), m.mask.extents,
                                     static_cast<int>(m.mask.in_features), static_cast<S*>(buffer), strips, first};
    return launch({"masked_linear_copy", dim3(rows, static_cast<unsigned>(end - first)), kThreads, 0, stream},
                  masked_linear_copy_kernel<S>, arguments);
  });
}

cudaError_t masked_linear_finish_cuda(MaskedLinearProduct product, const MaskedLinear& m, cudaStream_t stream) {
  using namespace cuda;
  return dispatch_16bit(m.storage, [&](auto type) {
    using S = decltype(type);
    if (product == Product::y) return launch_finish<S, Product::y>(m, stream);
    if (product == Product::grad_input) return launch_finish<S, Product::grad_input>(m, stream);
    return launch({"masked_linear_clear", dim3(static_cast<unsigned>(m.mask.out_features)), kThreads, 0, stream},
                  masked_linear_clear_kernel<S>, m.mask.extents, static_cast<int>(m.mask.in_features),
                  static_cast<S*>(m.output));
  });
}

}  // namespace ar_fast
