// masked_linear on CUDA: selects a path and launches on the current stream. Nothing here synchronises, so the values of
// the mask are not checked.
#include "../masked_linear.h"

#include <ATen/Context.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string>

#include "../../kernels/cuda/masked_linear_cuda.h"
#include "../activation.h"
#include "../explain.h"
#include "stream.h"

namespace ar_fast {
namespace {

using Launcher = cudaError_t (*)(const MaskedLinear&, cudaStream_t);

int64_t count_rows(const at::Tensor& rows) {
  int64_t count = 1;
  for (int64_t d = 0; d + 1 < rows.dim(); ++d) count *= rows.size(d);
  return count;
}

// (..., features) as a matrix (B, features) with unit column stride.
at::Tensor as_matrix(const at::Tensor& rows) {
  const at::Tensor matrix = rows.dim() == 2 ? rows : rows.reshape({count_rows(rows), rows.size(-1)});
  return matrix.stride(1) == 1 && matrix.stride(0) >= matrix.size(1) ? matrix : matrix.contiguous();
}

at::Tensor empty_rows(const at::Tensor& rows, int64_t features) {
  std::vector<int64_t> sizes(rows.sizes().begin(), rows.sizes().end());
  sizes.back() = features;
  return at::empty(sizes, rows.options());
}

// Limits of the kernels' 32-bit sizes and of the grid.
void check_limits(const char* op, int64_t batch, int64_t out_features, int64_t in_features) {
  TORCH_CHECK(batch < (int64_t{1} << 22) && out_features < (int64_t{1} << 22) && in_features < (int64_t{1} << 30), op,
              ": the CUDA kernels take fewer than 2^22 rows and outputs and 2^30 inputs, got ", batch, ", ",
              out_features, " and ", in_features);
}

bool few_rows(std::string_view algorithm, int64_t batch) {
  return algorithm == "fused" || (algorithm == "auto" && batch <= masked_linear_cuda_few_rows);
}

at::Tensor dense_mask(const ContiguousMask& mask, int64_t in_features) {
  if (!mask.extents.defined()) return mask.dense;
  at::Tensor places = at::arange(in_features, mask.extents.options());
  if (mask.columns.defined()) places = at::empty_like(places).scatter_(0, mask.columns.to(at::kLong), places);
  return at::lt(places.unsqueeze(0), mask.extents.unsqueeze(1));
}

at::Tensor select(const ContiguousMask& mask, const at::Tensor& weight) {
  return at::where(dense_mask(mask, weight.size(1)), weight, at::zeros({}, weight.options()));
}

// What torch's settings say about float32 products on CUDA. This is the function that torch itself calls before a
// product; allowTF32CuBLAS() would throw if both the old and the new interface were used and disagree.
bool tf32_allowed() {
  return !at::NoTF32Guard::should_disable_tf32() &&
         at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
             at::Float32Precision::TF32;
}

void run_rows(const char* op, Launcher launcher, const MaskedLinear& arguments, const at::Tensor& beside) {
  explain(op, " on CUDA: the weight streamed past a few rows, exact multiply-adds, ", arguments.batch, " rows, ",
          arguments.mask.out_features, " outputs, ", arguments.mask.in_features, " inputs");
  const c10::DeviceGuard guard(beside.device());
  check_launch(op, launcher(arguments, current_stream(beside)));
}

void run_tiles(const char* op, MaskedLinearProduct product, const MaskedLinear& arguments, const at::Tensor& beside) {
  const c10::DeviceGuard guard(beside.device());
  MaskedLinearTiling tiling;
  check_launch(op, masked_linear_tiling_cuda(product, arguments, tiling));
  if (explanation() != nullptr) {
    const char* products = !tiling.matrix                             ? "exact multiply-adds"
                           : arguments.storage == ScalarType::float32 ? "mma.sync in tf32"
                                                                      : "mma.sync";
    explain(op, " on CUDA: tiles of ", tiling.rows, " x ", tiling.columns, " by ", products,
            tiling.chunk > 0 ? ", sums in chunks of " + std::to_string(tiling.chunk) : std::string(), ", ",
            arguments.batch, " rows, ", arguments.mask.out_features, " outputs, ", arguments.mask.in_features,
            " inputs");
  }
  const at::Tensor scratch = tiling.scratch_bytes == 0
                                 ? at::Tensor()
                                 : at::empty({tiling.scratch_bytes}, beside.options().dtype(at::kByte));
  void* const memory = scratch.defined() ? scratch.mutable_data_ptr() : nullptr;
  check_launch(op, masked_linear_tiles_cuda(product, tiling, arguments, memory, current_stream(beside)));
}

// out = left right + bias, with the sums of torch.mm.
void multiply(at::Tensor out, const at::Tensor& left, const at::Tensor& right, const at::Tensor& bias) {
#if defined(AR_FAST_EMULATE_CUDA)
  if (emulation::note_product(out.size(0), out.size(1), left.size(1))) return;
#endif
  if (bias.defined()) {
    at::addmm_out(out, bias, left, right);
  } else {
    at::mm_out(out, left, right);
  }
}

// The matrices of y, dX or dW, which is `output`; those that it is not made of are undefined.
struct Matrices {
  at::Tensor input, weight, bias, grad_output, output;
};

void multiply_strip(MaskedLinearProduct product, const MaskedStrip& strip, const Matrices& m, const at::Tensor& copy) {
  const int64_t rows = strip.row_end - strip.row, columns = strip.column_end - strip.column;
  const auto weight = [&] {
    if (!strip.whole) return copy.narrow(0, strip.offset, rows * columns).view({rows, columns});
    return m.weight.narrow(0, strip.row, rows).narrow(1, strip.column, columns);
  };
  switch (product) {
    case MaskedLinearProduct::y:
      multiply(m.output.narrow(1, strip.row, rows), m.input.narrow(1, strip.column, columns), weight().t(),
               m.bias.defined() ? m.bias.narrow(0, strip.row, rows) : m.bias);
      break;
    case MaskedLinearProduct::grad_input:
      multiply(m.output.narrow(1, strip.column, columns), m.grad_output.narrow(1, strip.row, rows), weight(), {});
      break;
    case MaskedLinearProduct::grad_weight:
      multiply(m.output.narrow(0, strip.row, rows).narrow(1, strip.column, columns),
               m.grad_output.narrow(1, strip.row, rows).t(), m.input.narrow(1, strip.column, columns), {});
      break;
  }
}

// By torch's GEMM over strips of the staircase, where the sizes are for them. Masked copies of strips are made for as
// many products together as the buffer holds.
bool run_strips(const char* op, MaskedLinearProduct product, std::string_view algorithm, at::IntArrayRef steps,
                const MaskedLinear& arguments, const Matrices& matrices) {
  const bool asked = algorithm == "panels" || (algorithm == "auto" && arguments.batch >= masked_linear_cuda_strip_rows);
  if (!asked || steps.empty()) return false;
  const c10::DeviceGuard guard(matrices.output.device());
  const MaskSteps known{mask_step_rows(arguments.mask.out_features), static_cast<int64_t>(steps.size()), steps.data()};
  MaskedStrips strips;
  check_launch(op, masked_linear_strips_cuda(product, arguments, known, strips));
  if (strips.count == 0) return false;
  explain(op, " on CUDA: torch's GEMM over ", strips.count, " strips of the staircase, ", arguments.batch, " rows, ",
          arguments.mask.out_features, " outputs, ", arguments.mask.in_features, " inputs");
  const auto copied = [&](int i) {
    const MaskedStrip& strip = strips.strip[i];
    return strip.whole ? int64_t{0} : int64_t{strip.row_end - strip.row} * (strip.column_end - strip.column);
  };
  int64_t all = 0;
  for (int i = 0; i < strips.count; ++i) all += copied(i);
  const at::Tensor copy = at::empty({std::min(all, strips.buffer_elements)}, matrices.output.options());
  for (int first = 0, end = 0; first < strips.count; first = end) {
    for (int64_t used = 0; end < strips.count && used + copied(end) <= copy.numel(); ++end) {
      strips.strip[end].offset = used;
      used += copied(end);
    }
    void* const memory = copy.mutable_data_ptr();
    check_launch(op, masked_linear_copy_cuda(arguments, strips, first, end, memory, current_stream(copy)));
    for (int i = first; i < end; ++i) multiply_strip(product, strips.strip[i], matrices, copy);
  }
  check_launch(op, masked_linear_finish_cuda(product, arguments, current_stream(copy)));
  return true;
}

at::Tensor masked_linear_cuda(const MaskedLinearArguments& a) {
  const char* op = a.op;
  const Activation f = parse_layer_activation(op, a.activation);
  check_masked_linear(a);
  const ContiguousMask mask(mask_of(a));
  if (a.algorithm == "dense") return activate(f, at::linear(a.input, select(mask, a.weight), a.bias));
  const int64_t batch = count_rows(a.input), out_features = a.weight.size(0), in_features = a.weight.size(1);
  check_limits(op, batch, out_features, in_features);
  const at::Tensor x = as_matrix(a.input), w = a.weight.contiguous();
  const at::Tensor b = contiguous_or_undefined(a.bias);
  at::Tensor y = empty_rows(a.input, out_features);
  MaskedLinear arguments{};
  arguments.storage = storage_type(w.scalar_type());
  arguments.tf32 = tf32_allowed();
  arguments.batch = batch;
  arguments.mask = mask.plan(out_features, in_features);
  arguments.input = x.const_data_ptr();
  arguments.input_stride = x.stride(0);
  arguments.weight = w.const_data_ptr();
  arguments.bias = b.defined() ? b.const_data_ptr() : nullptr;
  arguments.activation = f;
  arguments.output = y.mutable_data_ptr();
  if (few_rows(a.algorithm, batch)) {
    run_rows(op, masked_linear_rows_cuda, arguments, w);
  } else if (!run_strips(op, MaskedLinearProduct::y, a.algorithm, a.steps, arguments,
                         {x, w, b, {}, y.view({batch, out_features})})) {
    run_tiles(op, MaskedLinearProduct::y, arguments, w);
  }
  return y;
}

at::Tensor masked_linear_grad_input_cuda(const MaskedLinearGradInputArguments& a) {
  const char* op = a.op;
  check_masked_linear_grad_input(a);
  const ContiguousMask mask(mask_of(a));
  if (a.algorithm == "dense") return at::linear(a.grad_output, select(mask, a.weight).t());
  const int64_t batch = count_rows(a.grad_output), out_features = a.weight.size(0), in_features = a.weight.size(1);
  check_limits(op, batch, out_features, in_features);
  const at::Tensor dy = as_matrix(a.grad_output), w = a.weight.contiguous();
  at::Tensor dx = empty_rows(a.grad_output, in_features);
  MaskedLinear arguments{};
  arguments.storage = storage_type(w.scalar_type());
  arguments.tf32 = tf32_allowed();
  arguments.batch = batch;
  arguments.mask = mask.plan(out_features, in_features);
  arguments.weight = w.const_data_ptr();
  arguments.grad_output = dy.const_data_ptr();
  arguments.grad_output_stride = dy.stride(0);
  arguments.output = dx.mutable_data_ptr();
  if (few_rows(a.algorithm, batch)) {
    run_rows(op, masked_linear_grad_input_rows_cuda, arguments, w);
  } else if (!run_strips(op, MaskedLinearProduct::grad_input, a.algorithm, a.steps, arguments,
                         {{}, w, {}, dy, dx.view({batch, in_features})})) {
    run_tiles(op, MaskedLinearProduct::grad_input, arguments, w);
  }
  return dx;
}

at::Tensor masked_linear_grad_weight_cuda(const MaskedLinearGradWeightArguments& a) {
  const char* op = a.op;
  check_masked_linear_grad_weight(a);
  const ContiguousMask mask(mask_of(a));
  const int64_t batch = count_rows(a.input), out_features = a.grad_output.size(-1), in_features = a.input.size(-1);
  check_limits(op, batch, out_features, in_features);
  const at::Tensor dy = as_matrix(a.grad_output), x = as_matrix(a.input);
  if (a.algorithm == "dense") return select(mask, at::mm(dy.t(), x));
  at::Tensor dw = at::empty({out_features, in_features}, a.input.options());
  MaskedLinear arguments{};
  arguments.storage = storage_type(x.scalar_type());
  arguments.tf32 = tf32_allowed();
  arguments.batch = batch;
  arguments.mask = mask.plan(out_features, in_features);
  arguments.input = x.const_data_ptr();
  arguments.input_stride = x.stride(0);
  arguments.grad_output = dy.const_data_ptr();
  arguments.grad_output_stride = dy.stride(0);
  arguments.output = dw.mutable_data_ptr();
  if (!run_strips(op, MaskedLinearProduct::grad_weight, a.algorithm, a.steps, arguments, {x, {}, {}, dy, dw})) {
    run_tiles(op, MaskedLinearProduct::grad_weight, arguments, x);
  }
  return dw;
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AR_FAST_CUDA_KEY, m) {
  implement<masked_linear_cuda>(m);
  implement<masked_linear_grad_input_cuda>(m);
  implement<masked_linear_grad_weight_cuda>(m);
}

}  // namespace ar_fast
