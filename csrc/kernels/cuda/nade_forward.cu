// NADE forward: the parameters, and the fused log-likelihood.
//
// nade_states (two kernels) computes the state before each chunk of about 2 sqrt(D) positions, so that chunks run in
// parallel. nade_scan goes through a chunk: there is one warp per (row, strip of hidden units), and each lane owns the
// units of one 128-bit vector of a weight row (128 units per strip in float32), with state and activations in
// registers. In the plain case the block's 8 rows share tiles of 32 positions of both weights in shared memory, so an
// activation costs 1 byte of L2 traffic: 8 bytes per clock and SM at the bound below, a third of what L2 provides.
// nade_head adds the strips in a fixed order and computes the head's log-likelihood, with a thread per variable for
// bernoulli and a warp per variable for the other heads; it reads 4 bytes (8 in float64) for the 128 (64) products of a
// warp of the scan.
//
// Designed for the special-function bound: one ex2 and one rcp per activation, 8 activations per clock and SM; about 10
// further instructions per activation stay under the issue rate of 128 per clock, for sigmoids without
// activation_scale, which have code of their own. If x = 0, neither state nor activation changes, and neither is
// recomputed (exact); a warp has one row, so the branch is uniform.
#include "head_device.h"
#include "nade_cuda.h"
#include "nade_device.h"

namespace ar_fast::cuda {
namespace {

constexpr int kRowsPerBlock = 8;
constexpr int kStep = 32;  // positions of a tile; lane l holds the input of position l
constexpr int kChunkMultiple = 8;  // positions that are summed over a warp together
constexpr int kHeadThreads = 512;

// Stages the rows of one strip of a weight: 512 bytes per position. Lane l knows the variable of position l.
template <typename S>
__device__ __forceinline__ void stage(const NadeArguments<S>& arguments, int lane_variable, int positions, int unit,
                                      S (*in_tile)[kWarpSize * Vector<S>::size],
                                      S (*out_tile)[kWarpSize * Vector<S>::size]) {
  constexpr int size = Vector<S>::size;
  const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize, hidden = arguments.hidden;
#pragma unroll
  for (int i = 0; i < kStep / kRowsPerBlock; ++i) {
    const int p = warp + i * kRowsPerBlock;
    const int64_t row = static_cast<int64_t>(__shfl_sync(kFullMask, lane_variable, p)) * hidden;
    if (p >= positions) continue;
    S *const in = &in_tile[p][lane * size], *const out = &out_tile[p][lane * size];
    if (arguments.aligned) {
      const int64_t at = row + (unit < hidden ? unit : 0);
      const int bytes = unit < hidden ? 16 : 0;
      copy_async_16(in, arguments.in_weight + at, bytes);
      copy_async_16(out, arguments.out_weight + at, bytes);
    } else {
#pragma unroll
      for (int k = 0; k < size; ++k) {
        in[k] = unit + k < hidden ? arguments.in_weight[row + unit + k] : S{};
        out[k] = unit + k < hidden ? arguments.out_weight[row + unit + k] : S{};
      }
    }
  }
}

template <typename S>
__device__ __forceinline__ void load_staged(const S* tile_row, Compute<S> (&units)[Vector<S>::size]) {
  const Vector<S> loaded = load_shared_vector(tile_row + lane_id() * Vector<S>::size);
#pragma unroll
  for (int i = 0; i < Vector<S>::size; ++i) units[i] = to_compute(loaded.values[i]);
}

template <typename T, int N>
__device__ __forceinline__ T dot(const T (&a)[N], const T (&b)[N]) {
  T sum = a[0] * b[0];
#pragma unroll
  for (int i = 1; i < N; ++i) sum = fma(a[i], b[i], sum);
  return sum;
}

// partial [strips, B, R_out]: each strip's share of the parameters. Block x = (group of rows, chunk), block y = strip.
// sigmoids: the activation is a sigmoid, and there is no activation_scale.
template <typename S, bool plain, bool sigmoids>
__global__ void __launch_bounds__(kRowsPerBlock* kWarpSize, sizeof(Compute<S>) == 8 ? 2 : 3)
    nade_scan_kernel(NadeArguments<S> arguments, int chunk, const Compute<S>* __restrict__ states,
                     Compute<S>* __restrict__ partial) {
  using T = Compute<S>;
  constexpr int size = Vector<S>::size, strip = kWarpSize * size;
  AR_FAST_SHARED(S, in_tile, [plain ? kStep : 1][strip]);
  AR_FAST_SHARED(S, out_tile, [plain ? kStep : 1][strip]);
  const int lane = lane_id(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int groups = (arguments.batch + kRowsPerBlock - 1) / kRowsPerBlock;
  const int index = static_cast<int>(blockIdx.x) / groups;
  const int row = static_cast<int>(blockIdx.x) % groups * kRowsPerBlock + warp;
  const bool has_row = row < arguments.batch;
  const int first_unit = static_cast<int>(blockIdx.y) * strip, unit = first_unit + lane * size;
  const int hidden = arguments.hidden;
  const int start = index * chunk, stop = min(start + chunk, arguments.variables);
  const bool scaled = !sigmoids && arguments.activation_scale != nullptr;

  T a[size], h[size];
#pragma unroll
  for (int i = 0; i < size; ++i) {
    a[i] = has_row && unit + i < hidden
               ? states[(static_cast<int64_t>(index) * arguments.batch + row) * hidden + unit + i]
               : T(0);
  }
  bool changed = true;
  T* const out = partial + (static_cast<int64_t>(blockIdx.y) * arguments.batch + row) * arguments.out_rows;

  for (int first = start; first < stop; first += kStep) {
    const bool has_position = has_row && first + lane < stop;
    const int lane_variable = first + lane < stop ? arguments.variable_at(first + lane) : 0;
    if constexpr (plain) {
      __syncthreads();
      stage(arguments, lane_variable, stop - first, unit, in_tile, out_tile);
      copy_async_commit();
    }
    T lane_x = T(0);
    if (has_position) {
      lane_x = plain ? arguments.x[static_cast<int64_t>(row) * arguments.variables + lane_variable]
                     : arguments.added(row, lane_variable).factor;
    }
    const T lane_scale = sigmoids ? T(1) : arguments.scale(lane_variable);
    const uint32_t ones = __ballot_sync(kFullMask, lane_x != T(0));
    if constexpr (plain) {
      copy_async_wait<0>();
      __syncthreads();
    }
    if (!has_row) continue;
    // Bit p of ones: position p changes the state. Bit p of fresh: its state is not the one that h was computed from.
    const uint32_t fresh = scaled ? ~0u : ones << 1 | (changed ? 1u : 0u);
    changed = ones >> (kStep - 1) != 0;
    // Positions group ... group + 7; `every` of them has a bit in ones, so that there are no branches.
    const auto eight_positions = [&](int group, auto every) {
      T sums[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int p = group + j;
        sums[j] = T(0);
        if (!plain && first + p >= stop) continue;
        if (decltype(every)::value || (fresh >> group & 1u << j) != 0) {
          if constexpr (sigmoids) {
            sigmoid(a, h);
          } else {
            activate(arguments.activation, scaled ? __shfl_sync(kFullMask, lane_scale, p) : T(1), a, h);
          }
        }
        T weight[size];
        if constexpr (plain) {
          load_staged(out_tile[p], weight);
          sums[j] = dot(weight, h);
        } else {
          const int variable = __shfl_sync(kFullMask, lane_variable, p);
          const int64_t begin = arguments.first_out_row(variable), end = arguments.first_out_row(variable + 1);
          for (int64_t eight = begin; eight < end; eight += 8) {
            T row_sums[8];
#pragma unroll
            for (int k = 0; k < 8; ++k) {
              row_sums[k] = T(0);
              if (eight + k >= end) continue;
              load_units(arguments.out_weight + (eight + k) * hidden, unit, hidden, arguments.aligned, weight);
              row_sums[k] = dot(weight, h);
            }
            const T sum = warp_sum_8(row_sums);
            if (lane % 4 == 0 && eight + lane / 4 < end) out[eight + lane / 4] = sum;
          }
        }
        if (decltype(every)::value || (ones >> group & 1u << j) != 0) {
          const T x = __shfl_sync(kFullMask, lane_x, p);
          if constexpr (plain) {
            load_staged(in_tile[p], weight);
          } else {
            const int variable = __shfl_sync(kFullMask, lane_variable, p);
            load_units(arguments.in_weight + arguments.added(row, variable).row * hidden, unit, hidden,
                       arguments.aligned, weight);
          }
#pragma unroll
          for (int i = 0; i < size; ++i) a[i] = fma(x, weight[i], a[i]);
        }
      }
      if constexpr (plain) {  // positions past the end have a sum of whatever lies in the tile
        const T sum = warp_sum_8(sums);
        const int variable = __shfl_sync(kFullMask, lane_variable, group + lane / 4);
        if (lane % 4 == 0 && first + group + lane / 4 < stop) out[variable] = sum;
      }
    };
    for (int group = 0; group < kStep && first + group < stop; group += 8) {
      if (plain && (ones >> group & 0xFFu) == 0xFFu) {
        eight_positions(group, std::true_type{});
      } else {
        eight_positions(group, std::false_type{});
      }
    }
  }
}

// What nade_head writes; each pointer is null if the result is not wanted.
template <typename T>
struct HeadOutput {
  T* parameters;             // [B, R_out]
  T* log_prob_per_variable;  // [B, D]
  T* log_prob;               // [B]

  __device__ __forceinline__ bool has_log_prob() const {
    return log_prob_per_variable != nullptr || log_prob != nullptr;
  }
};

// One block per row: parameters = out_bias + the strips' shares in order, then log p of each variable; log_prob is
// summed in double in a fixed order. A bernoulli variable belongs to one thread. The parameters of other heads
// overwrite the first strip's share, which only this block reads, before a warp takes the variable.
template <typename S, bool bernoulli>
__global__ void __launch_bounds__(kHeadThreads, sizeof(Compute<S>) == 8 ? 1 : 2)
    nade_head_kernel(NadeArguments<S> arguments, Head head, int strips, Compute<S>* __restrict__ partial,
                     HeadOutput<Compute<S>> output) {
  using T = Compute<S>;
  constexpr int kHeadWarps = kHeadThreads / kWarpSize;
  AR_FAST_SHARED(double, warp_sums, [kHeadWarps]);
  const int t = static_cast<int>(threadIdx.x), warp = t / kWarpSize;
  const int row = static_cast<int>(blockIdx.x);
  const int64_t out_rows = arguments.out_rows;
  T* const own = partial + row * out_rows;
  double total = 0;
  for (int64_t i = t; i < out_rows; i += kHeadThreads) {
    T value = arguments.out_bias[i];
    for (int s = 0; s < strips; ++s) value += own[s * static_cast<int64_t>(arguments.batch) * out_rows + i];
    if (output.parameters != nullptr) output.parameters[row * out_rows + i] = value;
    if constexpr (bernoulli) {
      if (!output.has_log_prob()) continue;
      const T term = bernoulli_log_prob(value, arguments.target(row, static_cast<int>(i)));
      if (output.log_prob_per_variable != nullptr) output.log_prob_per_variable[row * out_rows + i] = term;
      total += static_cast<double>(term);
    } else {
      own[i] = value;
    }
  }
  if constexpr (!bernoulli) {
    __syncthreads();
    for (int i = warp; i < arguments.variables; i += kHeadWarps) {
      const int64_t first = arguments.first_out_row(i);
      const T term = head_log_prob_one(
          head.of(i), own + first, static_cast<int>(arguments.first_out_row(i + 1) - first), arguments.target(row, i));
      if (t % kWarpSize != 0) continue;
      if (output.log_prob_per_variable != nullptr) {
        output.log_prob_per_variable[static_cast<int64_t>(row) * arguments.variables + i] = term;
      }
      total += static_cast<double>(term);
    }
  }
  if (output.log_prob == nullptr) return;
  total = warp_sum(total);
  if (t % kWarpSize == 0) warp_sums[warp] = total;
  __syncthreads();
  if (t != 0) return;
  for (int w = 1; w < kHeadWarps; ++w) total += warp_sums[w];
  output.log_prob[row] = static_cast<T>(total);
}

// How the forward is split. This depends only on the model, except for the number of rows taken at a time, which does
// not affect the arithmetic.
struct ForwardPlan {
  int chunk;
  int64_t chunks, strips, rows;

  template <typename S>
  static ForwardPlan of(const NadeModel& model, int64_t batch, S) {
    ForwardPlan plan;
    int64_t root = 1;
    while (root * root < model.variables) ++root;
    // Chunks are few enough for the running sums over them, and many enough to fill a GPU with few rows.
    plan.chunk = static_cast<int>(ceil_divide(2 * root, kChunkMultiple) * kChunkMultiple);
    plan.chunks = ceil_divide(model.variables, plan.chunk);
    plan.strips = ceil_divide(model.hidden, kWarpSize * Vector<S>::size);
    // Without hidden units a row needs no scratch.
    const int64_t row_bytes = std::max<int64_t>(
        1, (plan.chunks * model.hidden + plan.strips * model.out_rows) * static_cast<int64_t>(sizeof(Compute<S>)));
    // At least 64 rows at a time, but not more than a grid has blocks for.
    plan.rows = std::min({batch, std::max<int64_t>(64, kScratchBudget / row_bytes / kRowsPerBlock * kRowsPerBlock),
                          (int64_t{1} << 30) / plan.chunks * kRowsPerBlock});
    return plan;
  }
};

template <typename S>
int64_t cut_scratch(const NadeModel& model, const ForwardPlan& plan, void* base, Compute<S>** states,
                    Compute<S>** partial) {
  Scratch scratch(base);
  *states = scratch.take<Compute<S>>(plan.chunks * plan.rows * model.hidden);
  *partial = scratch.take<Compute<S>>(plan.strips * plan.rows * model.out_rows);
  return scratch.bytes();
}

template <typename S>
cudaError_t forward(const NadeModel& model, const NadeInput& input, const NadeForward& output, void* scratch,
                    cudaStream_t stream) {
  using T = Compute<S>;
  const ForwardPlan plan = ForwardPlan::of(model, input.batch, S{});
  T *states, *partial;
  cut_scratch<S>(model, plan, scratch, &states, &partial);
  const NadeArguments<S> all(model, input);
  const bool sigmoids = model.activation == Activation::sigmoid && model.activation_scale == nullptr;
  const auto kernel = !is_plain(model, input) ? nade_scan_kernel<S, false, false>
                      : sigmoids              ? nade_scan_kernel<S, true, true>
                                              : nade_scan_kernel<S, true, false>;
  const bool has_log_prob = output.log_prob != nullptr || output.log_prob_per_variable != nullptr;
  const bool by_threads = !has_log_prob || output.head.kind == HeadKind::bernoulli;
  const auto from = [](void* base, int64_t offset) {
    return base != nullptr ? static_cast<T*>(base) + offset : nullptr;
  };
  for (int64_t first = 0; first < input.batch; first += plan.rows) {
    const int64_t rows = std::min(plan.rows, input.batch - first);
    const NadeArguments<S> arguments = rows_from(all, first, rows);
    cudaError_t error = nade_states<S>(arguments, {0, arguments.variables, plan.chunk}, arguments.in_bias,
                                       arguments.in_bias_stride, states, nullptr, stream);
    if (error != cudaSuccess) return error;
    if (plan.strips > 0) {
      const dim3 grid(static_cast<unsigned>(ceil_divide(rows, kRowsPerBlock) * plan.chunks),
                      static_cast<unsigned>(plan.strips));
      error = launch({"nade_scan", grid, kRowsPerBlock * kWarpSize, 0, stream}, kernel, arguments, plan.chunk,
                     static_cast<const T*>(states), partial);
      if (error != cudaSuccess) return error;
    }
    const HeadOutput<T> rows_output = {from(output.parameters, first * model.out_rows),
                                       from(output.log_prob_per_variable, first * model.variables),
                                       from(output.log_prob, first)};
    error = launch({"nade_head", static_cast<unsigned>(rows), kHeadThreads, 0, stream},
                   by_threads ? nade_head_kernel<S, true> : nade_head_kernel<S, false>, arguments, output.head,
                   static_cast<int>(plan.strips), partial, rows_output);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace ar_fast::cuda

namespace ar_fast {

NadeForwardCut nade_forward_cuda_cut(const NadeModel& model, const NadeInput& input) {
  NadeForwardCut cut{};
  cuda::dispatch_storage(model.storage, [&](auto storage) {
    using S = decltype(storage);
    const auto plan = cuda::ForwardPlan::of(model, input.batch, storage);
    cuda::Compute<S>*states, *partial;
    cut = {cuda::is_plain(model, input),
           plan.chunk,
           plan.chunks,
           cuda::kWarpSize * cuda::Vector<S>::size,
           plan.strips,
           plan.rows,
           cuda::cut_scratch<S>(model, plan, nullptr, &states, &partial)};
    return cudaSuccess;
  });
  return cut;
}

cudaError_t nade_forward_cuda(const NadeModel& model, const NadeInput& input, const NadeForward& output, void* scratch,
                              cudaStream_t stream) {
  return cuda::dispatch_storage(model.storage, [&](auto storage) {
    return cuda::forward<decltype(storage)>(model, input, output, scratch, stream);
  });
}

}  // namespace ar_fast
