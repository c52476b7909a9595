// masked_linear on the CPU: the choice of a path, and the shapes around it.
#include "../masked_linear.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "../activation.h"
#include "../explain.h"
#include "isa.h"
#include "masked_linear_paths.h"

namespace ar_fast {
namespace {

enum class Path { panels, bfloat16, fused, copied, dense };

Path choose(std::string_view algorithm, at::ScalarType storage, int64_t batch) {
  if (algorithm == "dense") return Path::dense;
  if (algorithm == "fused") return Path::fused;
  const bool bfloat16 = storage == at::kBFloat16;
  if (algorithm == "panels") return bfloat16 ? Path::bfloat16 : Path::panels;
  if (batch > 8 && bfloat16 && has_amx_bfloat16()) return Path::bfloat16;
  // Without wide registers torch's GEMM, which selects its instructions itself, is faster.
  return batch > 8 && current_isa() == Isa::baseline ? Path::panels : Path::fused;
}

// Whether to compute with masked copies: if one side has many permuted features and the other has few, gathering the
// many costs more than the product that would be skipped. A copy of the weight pays where many rows share it.
bool copies(std::string_view algorithm, const HostMask& mask, int64_t batch) {
  constexpr int64_t few = 128;
  const int64_t inputs = mask.plan().in_features, outputs = mask.plan().out_features;
  const bool many_outputs =
      mask.rows().defined() && inputs <= few && outputs >= 4 * inputs && batch > 8 * inputs;
  const bool many_inputs = mask.columns().defined() && outputs <= few && inputs > in_place_features;
  return algorithm == "auto" && batch > 8 && (many_outputs || many_inputs);
}

void explain_path(const char* op, Path path, const HostMask& mask, int64_t batch) {
  if (explanation() == nullptr) return;
  static constexpr const char* names[] = {"panels through torch's GEMM", "panels through torch's GEMM in bfloat16",
                                          "fused kernels",
                                          "masked copies through torch's GEMM", "a dense masked copy"};
  explain(op, " on the CPU: ", names[static_cast<int>(path)], ", ", isa_name(), ", ",
          !mask.nested() ? "blocks" : mask.sorted() ? "a staircase in place" : "a permuted staircase", ", ", batch,
          " rows, ", mask.plan().out_features, " outputs, ", mask.plan().in_features, " inputs, on ",
          at::get_num_threads(), " threads");
}

int64_t count_rows(const at::Tensor& rows) {
  int64_t count = 1;
  for (int64_t d = 0; d + 1 < rows.dim(); ++d) count *= rows.size(d);
  return count;
}

// (..., features) -> a contiguous matrix (B, features) of the compute type.
at::Tensor as_matrix(const at::Tensor& rows) {
  const at::Tensor matrix = rows.dim() == 2 ? rows : rows.reshape({count_rows(rows), rows.size(-1)});
  return matrix.to(compute_type(rows.scalar_type())).contiguous();
}

// (B, features) in the compute type -> (..., features) with the leading dimensions and the dtype of `rows`.
at::Tensor as_rows(const at::Tensor& matrix, const at::Tensor& rows) {
  const at::Tensor cast = matrix.to(rows.scalar_type());
  if (rows.dim() == 2) return cast;
  std::vector<int64_t> sizes(rows.sizes().begin(), rows.sizes().end());
  sizes.back() = matrix.size(1);
  return cast.view(sizes);
}

at::Tensor dense_weight(const HostMask& mask, const at::Tensor& weight) {
  return at::where(mask.to_dense(), weight, at::zeros({}, weight.options()));
}

// A masked weight must not see the other operand, even NaN, but a product with zero instead of the weight does.
void mend(const HostMask& mask, const at::Tensor& input, const at::Tensor& grad_output, const at::Tensor& weight,
          const at::Tensor& bias, Activation activation, const at::Tensor& output) {
  const auto data = [](const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; };
  MaskedRows arguments{};
  arguments.storage = storage_type(weight.scalar_type());
  arguments.plan = mask.plan();
  arguments.rank = mask.rank();
  arguments.batch = output.size(0);
  arguments.input = data(input);
  arguments.weight = weight.const_data_ptr();
  arguments.bias = data(bias);
  arguments.activation = activation;
  arguments.grad_output = data(grad_output);
  arguments.output = output.mutable_data_ptr();
  parallel(output.numel() > 32 * parallel_work, output.size(0), [&](int64_t begin, int64_t end) {
    AR_FAST_CPU_KERNEL(masked_mend_rows)(arguments, begin, end);
  });
}

at::Tensor masked_linear_cpu(const MaskedLinearArguments& a) {
  const Activation f = parse_layer_activation(a.op, a.activation);
  check_masked_linear(a);
  const HostMask mask(a.op, mask_of(a), a.weight.size(0), a.weight.size(1));
  const int64_t batch = count_rows(a.input);
  const Path path =
      copies(a.algorithm, mask, batch) ? Path::copied : choose(a.algorithm, a.weight.scalar_type(), batch);
  explain_path(a.op, path, mask, batch);
  const at::Tensor x = as_matrix(a.input);
  at::Tensor b = or_undefined(a.bias);
  if (b.defined()) b = b.to(x.scalar_type()).contiguous();
  const at::Tensor w = a.weight.contiguous();
  const auto sums = path == Path::copied     ? copied_forward
                    : path == Path::bfloat16 ? bfloat16_forward
                                             : panels_forward;
  std::atomic<bool> undefined{path != Path::fused};
  const at::Tensor y = path == Path::fused ? fused_forward(mask, x, w, b, f, undefined)
                       : path == Path::dense
                           ? as_matrix(activate(f, at::linear(a.input, dense_weight(mask, a.weight), a.bias)))
                           : activate(f, sums(mask, x, w, b));
  if (undefined) mend(mask, x, {}, w, b, f, y);
  return as_rows(y, a.input);
}

at::Tensor masked_linear_grad_input_cpu(const MaskedLinearGradInputArguments& a) {
  check_masked_linear_grad_input(a);
  const HostMask mask(a.op, mask_of(a), a.weight.size(0), a.weight.size(1));
  const Path path = choose(a.algorithm, a.weight.scalar_type(), count_rows(a.grad_output));
  explain_path(a.op, path, mask, count_rows(a.grad_output));
  const at::Tensor dy = as_matrix(a.grad_output), w = a.weight.contiguous();
  std::atomic<bool> undefined{path != Path::fused};
  const at::Tensor dx = path == Path::dense   ? at::mm(dy, dense_weight(mask, w).to(dy.scalar_type()))
                        : path == Path::fused ? fused_grad_input(mask, dy, w, undefined)
                        : path == Path::bfloat16 ? bfloat16_grad_input(mask, dy, w)
                                                 : panels_grad_input(mask, dy, w);
  if (undefined) mend(mask, {}, dy, w, {}, Activation::none, dx);
  return as_rows(dx, a.grad_output);
}

at::Tensor masked_linear_grad_weight_cpu(const MaskedLinearGradWeightArguments& a) {
  check_masked_linear_grad_weight(a);
  const int64_t batch = count_rows(a.input);
  const HostMask mask(a.op, mask_of(a), a.grad_output.size(-1), a.input.size(-1));
  if (batch == 0) return at::zeros({a.grad_output.size(-1), a.input.size(-1)}, a.input.options());
  const Path path = choose(a.algorithm, a.input.scalar_type(), batch);
  explain_path(a.op, path, mask, batch);
  const at::Tensor dy = as_matrix(a.grad_output), x = as_matrix(a.input);
  if (path == Path::dense) {
    const at::Tensor dw = at::mm(dy.t(), x);
    return at::where(mask.to_dense(), dw, at::zeros({}, dw.options())).to(a.input.scalar_type());
  }
  if (path == Path::bfloat16) return bfloat16_grad_weight(mask, dy, x);
  const auto grad_weight = path == Path::fused ? fused_grad_weight : panels_grad_weight;
  return grad_weight(mask, dy, x, a.input.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) {
  implement<masked_linear_cpu>(m);
  implement<masked_linear_grad_input_cpu>(m);
  implement<masked_linear_grad_weight_cpu>(m);
}

}  // namespace ar_fast
