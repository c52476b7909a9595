// What the NADE kernels share: the model with its types, and the states at the start of tiles of positions.
#pragma once

#include <algorithm>

#include "../nade.h"
#include "activation.h"

namespace ar_fast::cuda {

// What an input adds to the state: a row of in_weight, times a factor.
template <typename T>
struct Added {
  int64_t row;
  T factor;
};

// NadeModel and NadeInput with their types, passed to kernels by value.
template <typename S>
struct NadeArguments {
  using T = Compute<S>;
  Activation activation;
  bool aligned;  // rows of both weights may be read 128 bits at a time
  int variables, hidden, batch;
  int64_t in_rows, out_rows;
  const S* in_weight;
  const T* in_bias;
  int64_t in_bias_stride;
  const S* out_weight;
  const T* out_bias;
  const int64_t* order;
  const int64_t* in_offsets;
  const int64_t* out_offsets;
  const T* activation_scale;
  const T* x;
  const int64_t* categories;

  NadeArguments(const NadeModel& model, const NadeInput& input)
      : activation(model.activation),
        variables(static_cast<int>(model.variables)),
        hidden(static_cast<int>(model.hidden)),
        batch(static_cast<int>(input.batch)),
        in_rows(model.in_rows),
        out_rows(model.out_rows),
        in_weight(static_cast<const S*>(model.in_weight)),
        in_bias(static_cast<const T*>(model.in_bias)),
        in_bias_stride(model.in_bias_stride),
        out_weight(static_cast<const S*>(model.out_weight)),
        out_bias(static_cast<const T*>(model.out_bias)),
        order(model.order),
        in_offsets(model.in_offsets),
        out_offsets(model.out_offsets),
        activation_scale(static_cast<const T*>(model.activation_scale)),
        x(static_cast<const T*>(input.x)),
        categories(input.categories) {
    aligned = vectors_fit(in_weight, model.hidden) && vectors_fit(out_weight, model.hidden);
  }

  __device__ __forceinline__ int variable_at(int position) const {
    return order != nullptr ? static_cast<int>(order[position]) : position;
  }
  __device__ __forceinline__ int64_t first_in_row(int variable) const {
    return in_offsets != nullptr ? in_offsets[variable] : variable * (in_rows / variables);
  }
  __device__ __forceinline__ int64_t first_out_row(int variable) const {
    return out_offsets != nullptr ? out_offsets[variable] : variable * (out_rows / variables);
  }
  // Whether the values of a variable in x are categories.
  __device__ __forceinline__ bool gathers(int variable) const {
    return in_offsets != nullptr && in_offsets[variable + 1] - in_offsets[variable] > 1;
  }
  // The row of in_weight that a row of the batch adds, and its factor.
  __device__ __forceinline__ Added<T> added(int row, int variable) const {
    if (x != nullptr && in_offsets == nullptr) return {variable, x[static_cast<int64_t>(row) * variables + variable]};
    return added(row, variable, first_in_row(variable), first_in_row(variable + 1));
  }
  // The same of a variable whose rows of in_weight are [first, end).
  __device__ __forceinline__ Added<T> added(int row, int variable, int64_t first, int64_t end) const {
    const int64_t at = static_cast<int64_t>(row) * variables + variable;
    if (x == nullptr) return gathered(first, end, categories[at]);
    return end - first > 1 ? gathered(first, end, x[at]) : Added<T>{first, x[at]};
  }
  // A value that gathers one of the rows [first, end).
  template <typename Value>
  static __device__ __forceinline__ Added<T> gathered(int64_t first, int64_t end, Value value) {
    const bool category = is_category(value, end - first);
    return {first + (category ? static_cast<int64_t>(value) : 0), category ? T(1) : not_a_number<T>};
  }
  // What the head judges: a real value or a category.
  __device__ __forceinline__ T target(int row, int variable) const {
    const int64_t at = static_cast<int64_t>(row) * variables + variable;
    return x != nullptr ? x[at] : static_cast<T>(categories[at]);
  }
  __device__ __forceinline__ T scale(int variable) const {
    return activation_scale != nullptr ? activation_scale[variable] : T(1);
  }
};

// One row of each weight per variable and a real x: what is staged in shared memory or registers for many rows at once.
inline bool is_plain(const NadeModel& model, const NadeInput& input) {
  return input.categories == nullptr && model.in_offsets == nullptr && model.out_offsets == nullptr &&
         model.in_rows == model.variables && model.out_rows == model.variables;
}

template <typename S>
inline NadeArguments<S> rows_from(NadeArguments<S> arguments, int64_t first, int64_t count) {
  if (arguments.x != nullptr) arguments.x += first * arguments.variables;
  if (arguments.categories != nullptr) arguments.categories += first * arguments.variables;
  arguments.in_bias += first * arguments.in_bias_stride;
  arguments.batch = static_cast<int>(count);
  return arguments;
}

// load_stored in the compute type.
template <typename S>
__device__ __forceinline__ void load_units(const S* row, int u, int hidden, bool aligned,
                                           Compute<S> (&units)[Vector<S>::size]) {
  const Vector<S> loaded = load_stored(row, u, hidden, aligned);
#pragma unroll
  for (int i = 0; i < Vector<S>::size; ++i) units[i] = to_compute(loaded.values[i]);
}

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Positions of one segment of the scan, cut into tiles of `tile` positions (the last may be short).
struct NadeTiles {
  int start, stop, tile;
  int count() const { return static_cast<int>(ceil_divide(stop - start, tile)); }
};

// states [tiles, B, H]: the pre-activations before the first position of each tile; after [B, H]: those at tiles.stop,
// null if not wanted. `initial` is the state at tiles.start, [B, H] or, with initial_stride 0, [H]. A state is the one
// a tile before plus the sum over that tile, so a segment that goes on from `after` gets the same bits.
template <typename S>
cudaError_t nade_states(const NadeArguments<S>& arguments, const NadeTiles& tiles, const Compute<S>* initial,
                        int64_t initial_stride, Compute<S>* states, Compute<S>* after, cudaStream_t stream);

// Replaces each tile's sum in sums [tiles, B, H] by `initial` plus the sums of the tiles before it (after it, if
// backward), added one by one; total [B, H] is `initial` plus all of them. initial is [B, H], with initial_stride 0
// [H], null for zero, and may be total.
template <typename T>
cudaError_t nade_running_sums(int64_t rows, int hidden, int tiles, bool backward, T* sums, const T* initial,
                              int64_t initial_stride, T* total, cudaStream_t stream);

// Cuts scratch into arrays aligned to 256 bytes. With a null base it only counts.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    T* here = base_ != nullptr ? reinterpret_cast<T*>(base_ + bytes_) : nullptr;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return here;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// Scratch beyond this is cut: the forward takes fewer rows at a time, the backward fewer tiles. The tests lower it.
#if defined(AR_FAST_EMULATE_CUDA)
inline int64_t kScratchBudget = int64_t{256} << 20;
#else
constexpr int64_t kScratchBudget = int64_t{256} << 20;
#endif

// A warp of nade_sums has many rows where so many warps are left: 8 for each multiprocessor of a large GPU. The tests
// lower it.
#if defined(AR_FAST_EMULATE_CUDA)
inline int64_t kEnoughWarps = 1056;
#else
constexpr int64_t kEnoughWarps = 1056;
#endif

}  // namespace ar_fast::cuda
