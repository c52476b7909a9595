// NADE on the CPU: cuts the work into slices, gives each its scratch, and runs them on torch's threads.
#include "../nade.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../../kernels/cpu/nade_cpu.h"
#include "../explain.h"
#include "../library.h"
#include "isa.h"

namespace ar_fast {
namespace {

// Rows of one call of a kernel at most: their states stay in the cache.
constexpr int64_t rows_per_task = 64;
// Rows of a weight in one chunk: with H = 512 in float, 32 rows of both weights are 128 KiB.
constexpr int64_t rows_per_chunk = 32;

struct Chunks {
  std::vector<int64_t> starts{0};
  NadeChunks view{};
};

Chunks cut(const NadeModel& model, int64_t most_rows) {
  const auto rows_of = [&](const int64_t* offsets, int64_t rows, int64_t variable) {
    return offsets ? offsets[variable + 1] - offsets[variable] : rows / model.variables;
  };
  Chunks chunks;
  int64_t in_rows = 0, out_rows = 0, positions = 0;
  const auto close = [&](int64_t position) {
    chunks.starts.push_back(position);
    chunks.view.max_positions = std::max(chunks.view.max_positions, positions);
    chunks.view.max_in_rows = std::max(chunks.view.max_in_rows, in_rows);
    chunks.view.max_out_rows = std::max(chunks.view.max_out_rows, out_rows);
    in_rows = out_rows = positions = 0;
  };
  for (int64_t p = 0; p < model.variables; ++p) {
    const int64_t variable = model.order ? model.order[p] : p;
    const int64_t in = rows_of(model.in_offsets, model.in_rows, variable);
    const int64_t out = rows_of(model.out_offsets, model.out_rows, variable);
    if (positions > 0 && std::max({in_rows + in, out_rows + out, positions + 1}) > most_rows) close(p);
    in_rows += in;
    out_rows += out;
    ++positions;
  }
  close(model.variables);
  chunks.view.starts = chunks.starts.data();
  chunks.view.count = static_cast<int64_t>(chunks.starts.size()) - 1;
  return chunks;
}

// On the CPU values can be looked at without a synchronisation, so indices that would read outside a tensor raise.
void check_offset_values(const char* op, const char* name, const int64_t* offsets, int64_t variables, int64_t rows) {
  if (!offsets) return;
  TORCH_CHECK(offsets[0] == 0 && offsets[variables] == rows, op, ": ", name, " must run from 0 to ", rows, ", got ",
              offsets[0], " to ", offsets[variables]);
  for (int64_t i = 0; i < variables; ++i) {
    TORCH_CHECK(offsets[i] < offsets[i + 1], op, ": ", name, " must ascend, got ", offsets[i], " before ",
                offsets[i + 1], " at ", i);
  }
}

void check_order_values(const char* op, const int64_t* order, int64_t variables) {
  if (!order) return;
  std::vector<bool> seen(variables, false);
  for (int64_t p = 0; p < variables; ++p) {
    TORCH_CHECK(order[p] >= 0 && order[p] < variables && !seen[order[p]], op,
                ": order must be a permutation of 0 ... D-1 = ", variables - 1, ", got ", order[p], " at position ", p);
    seen[order[p]] = true;
  }
}

void check_values(const char* op, const NadeTensors& t) {
  const NadeModel& m = t.model;
  check_order_values(op, m.order, m.variables);
  check_offset_values(op, "in_offsets", m.in_offsets, m.variables, m.in_rows);
  check_offset_values(op, "out_offsets", m.out_offsets, m.variables, m.out_rows);
  if (!t.input.categories) return;
  for (int64_t i = 0; i < m.variables; ++i) {
    const int64_t count = m.in_offsets ? m.in_offsets[i + 1] - m.in_offsets[i] : m.in_rows / m.variables;
    for (int64_t row = 0; row < t.input.batch; ++row) {
      const int64_t category = t.input.categories[row * m.variables + i];
      TORCH_CHECK(category >= 0 && category < count, op, ": x must lie in [0, ", count, ") for variable ", i,
                  ", got ", category, " in row ", row);
    }
  }
}

NadeLayout layout_of(const NadeModel& model, const NadeChunks& chunks, int64_t batch, int64_t rows) {
  NadeLayout layout{};
  AR_FAST_CPU_KERNEL(nade_layout)(model, chunks, batch, rows, &layout);
  return layout;
}

// Calls body(begin, end, scratch) over [0, count) in slices of at most `slice`, one scratch per thread.
template <typename Body>
void in_slices(int64_t count, int64_t slice, int64_t scratch_bytes, const Body& body) {
  const int64_t slices = (count + slice - 1) / slice;
  at::parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
    // Aligned to a cache line, as the kernels' arrays are cut.
    auto scratch = at::empty({scratch_bytes + 64}, at::kByte);
    char* base = static_cast<char*>(scratch.mutable_data_ptr());
    base += (64 - reinterpret_cast<uintptr_t>(base) % 64) % 64;
    for (int64_t s = begin; s < end; ++s) body(s * slice, std::min(count, (s + 1) * slice), base);
  });
}

void explain_nade(const char* kernel, const NadeModel& model, const NadeChunks& chunks, const NadeLayout& layout,
                  const char* slices, int64_t count) {
  explain("nade on the CPU: kernel ", kernel, ", ", isa_name(), ", ", chunks.count, " chunks of at most ",
          chunks.max_positions, " positions, ", layout.strips, " strips of ", layout.strip, " hidden units (H = ",
          model.hidden, "), ", count, " ", slices, " on ", at::get_num_threads(), " threads");
}

int64_t rows_per_slice(int64_t batch) {
  const int64_t threads = std::max<int64_t>(1, at::get_num_threads());
  return std::max<int64_t>(1, std::min(rows_per_task, (batch + threads - 1) / threads));
}

void run_forward(const NadeTensors& t, const NadeForward& output) {
  if (t.input.batch == 0) return;
  const Chunks chunks = cut(t.model, rows_per_chunk);
  const int64_t slice = rows_per_slice(t.input.batch);
  const NadeLayout layout = layout_of(t.model, chunks.view, t.input.batch, slice);
  explain_nade("nade_forward", t.model, chunks.view, layout, "row groups", (t.input.batch + slice - 1) / slice);
  const auto kernel = AR_FAST_CPU_KERNEL(nade_forward);
  in_slices(t.input.batch, slice, layout.forward_bytes, [&](int64_t begin, int64_t end, void* scratch) {
    kernel(t.model, t.input, output, chunks.view, begin, end, scratch);
  });
}

at::TensorOptions compute_options(const NadeTensors& t) {
  return t.in_weight.options().dtype(compute_type(t.in_weight.scalar_type()));
}

at::Tensor nade_cpu(const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
                    const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                    const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                    const OptionalTensor& activation_scale, std::string activation, std::string algorithm) {
  const char* op = "nade";
  check_algorithm(op, algorithm, {"auto", "chunks"});
  check_nade(op, x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets, activation_scale);
  const NadeTensors t = prepare_nade(x, in_weight, in_bias, out_weight, out_bias, order, in_offsets, out_offsets,
                                     activation_scale, parse_activation(op, activation));
  check_values(op, t);
  at::Tensor parameters = at::empty({t.input.batch, t.model.out_rows}, compute_options(t));
  NadeForward output{};
  output.parameters = parameters.mutable_data_ptr();
  run_forward(t, output);
  return parameters;
}

std::tuple<at::Tensor, at::Tensor> nade_log_prob_forward_cpu(
    const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias, const at::Tensor& out_weight,
    const at::Tensor& out_bias, const OptionalTensor& order, const OptionalTensor& activation_scale,
    std::string activation, bool per_variable, bool keep_logits, std::string algorithm) {
  const char* op = "nade_log_prob";
  check_algorithm(op, algorithm, {"auto", "chunks"});
  check_nade(op, x, in_weight, in_bias, out_weight, out_bias, order, std::nullopt, std::nullopt, activation_scale);
  check_bernoulli(op, x, in_weight, out_weight);
  const NadeTensors t = prepare_nade(x, in_weight, in_bias, out_weight, out_bias, order, std::nullopt, std::nullopt,
                                     activation_scale, parse_activation(op, activation));
  check_values(op, t);
  const auto options = compute_options(t);
  at::Tensor log_prob = per_variable ? at::empty(x.sizes(), options) : at::empty({x.size(0)}, options);
  at::Tensor logits = keep_logits ? at::empty(x.sizes(), options) : at::empty({0}, options);
  NadeForward output{};
  output.parameters = keep_logits ? logits.mutable_data_ptr() : nullptr;
  (per_variable ? output.log_prob_per_variable : output.log_prob) = log_prob.mutable_data_ptr();
  run_forward(t, output);
  return {log_prob, logits};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> nade_backward_cpu(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& in_bias,
    const at::Tensor& out_weight, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& activation_scale, std::string activation, bool needs_x,
    bool needs_activation_scale, std::string algorithm) {
  const char* op = "nade_backward";
  check_algorithm(op, algorithm, {"auto", "chunks"});
  check_nade(op, x, in_weight, in_bias, out_weight, at::Tensor(), order, in_offsets, out_offsets, activation_scale);
  const NadeTensors t = prepare_nade(x, in_weight, in_bias, out_weight, at::Tensor(), order, in_offsets, out_offsets,
                                     activation_scale, parse_activation(op, activation));
  check_values(op, t);
  TORCH_CHECK(grad.dim() == 2 && grad.size(0) == t.input.batch && grad.size(1) == t.model.out_rows, op,
              ": grad must have shape (B, R_out) = (", t.input.batch, ", ", t.model.out_rows, "), got ", grad.sizes());
  const auto options = compute_options(t);
  const at::Tensor dense_grad = grad.to(options.dtype()).contiguous();
  const int64_t batch = t.input.batch;
  at::Tensor grad_x = needs_x ? at::empty(x.sizes(), options) : at::empty({0}, options);
  at::Tensor grad_in_weight = at::empty(in_weight.sizes(), in_weight.options());
  at::Tensor grad_in_bias = at::empty(in_bias.sizes(), options);
  at::Tensor grad_out_weight = at::empty(out_weight.sizes(), in_weight.options());
  at::Tensor grad_scale = needs_activation_scale ? at::empty({batch, t.model.variables}, options) : at::empty({0}, options);
  TORCH_CHECK(!needs_x || at::isFloatingType(x.scalar_type()), op, ": x must be floating to have a gradient, got ",
              dtype_name(x.scalar_type()));

  NadeBackward output{};
  output.grad_parameters = dense_grad.const_data_ptr();
  output.grad_in_weight = grad_in_weight.mutable_data_ptr();
  output.grad_out_weight = grad_out_weight.mutable_data_ptr();
  output.grad_in_bias = grad_in_bias.mutable_data_ptr();
  output.grad_x = needs_x ? grad_x.mutable_data_ptr() : nullptr;
  output.grad_activation_scale = needs_activation_scale ? grad_scale.mutable_data_ptr() : nullptr;

  // About sqrt(D) checkpoints balance their memory against that of one chunk.
  const auto root = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(t.model.variables))));
  const Chunks chunks = cut(t.model, std::clamp<int64_t>(root, 16, 256));
  const NadeLayout layout = layout_of(t.model, chunks.view, batch, 1);
  explain_nade("nade_backward_weights", t.model, chunks.view, layout, "strips", layout.strips);
  const auto weights = AR_FAST_CPU_KERNEL(nade_backward_weights);
  in_slices(layout.strips, 1, layout.backward_weights_bytes, [&](int64_t begin, int64_t end, void* scratch) {
    for (int64_t strip = begin; strip < end; ++strip) weights(t.model, t.input, output, chunks.view, strip, scratch);
  });
  if ((needs_x || needs_activation_scale) && batch > 0) {
    const auto rows = AR_FAST_CPU_KERNEL(nade_backward_input);
    in_slices(batch, 1, layout.backward_input_bytes, [&](int64_t begin, int64_t end, void* scratch) {
      rows(t.model, t.input, output, chunks.view, begin, end, scratch);
    });
  }
  if (needs_activation_scale) grad_scale = grad_scale.sum(0);
  return {grad_x, grad_in_weight, grad_in_bias, grad_out_weight, grad_scale};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> nade_sample_cpu(
    const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& out_weight, const at::Tensor& out_bias,
    const OptionalTensor& order, const OptionalTensor& activation_scale, const OptionalTensor& given,
    const OptionalTensor& known, std::string activation, int64_t seed, int64_t first_index, int64_t start,
    int64_t stop, double temperature, std::string algorithm) {
  const char* op = "nade_sample";
  check_algorithm(op, algorithm, {"auto", "rows"});
  check_nade_sample(state, in_weight, out_weight, out_bias, order, activation_scale, given, known, start, stop,
                    temperature);
  const NadeTensors t = prepare_nade(at::Tensor(), in_weight, at::Tensor(), out_weight, out_bias, order, std::nullopt,
                                     std::nullopt, activation_scale, parse_activation(op, activation));
  check_order_values(op, t.model.order, t.model.variables);
  const int64_t batch = state.size(0);
  at::Tensor next = state.clone(at::MemoryFormat::Contiguous);
  at::Tensor values = at::empty({batch, stop - start}, state.options());
  at::Tensor log_prob = at::zeros({batch}, state.options().dtype(at::kDouble));
  const at::Tensor given_rows = given.has_value() ? given->contiguous() : at::Tensor();
  const at::Tensor known_rows = known.has_value() ? known->contiguous() : at::Tensor();

  NadeSample sample{};
  sample.batch = batch;
  sample.start = start;
  sample.stop = stop;
  sample.seed = static_cast<uint64_t>(seed);
  sample.first_index = first_index;
  sample.temperature = temperature;
  sample.given = given_rows.defined() ? given_rows.const_data_ptr() : nullptr;
  sample.known = known_rows.defined() ? static_cast<const uint8_t*>(known_rows.const_data_ptr()) : nullptr;
  sample.state = next.mutable_data_ptr();
  sample.values = values.mutable_data_ptr();
  sample.log_prob = log_prob.mutable_data_ptr<double>();
  if (batch > 0 && stop > start) {
    const NadeLayout layout = layout_of(t.model, NadeChunks{}, batch, 1);
    explain("nade_sample on the CPU: ", isa_name(), ", ", batch, " rows, positions ", start, " to ", stop, ", on ",
            at::get_num_threads(), " threads");
    const auto kernel = AR_FAST_CPU_KERNEL(nade_sample);
    in_slices(batch, rows_per_slice(batch), layout.sample_bytes, [&](int64_t begin, int64_t end, void* scratch) {
      kernel(t.model, sample, begin, end, scratch);
    });
  }
  return {values, log_prob, next};
}

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, CPU, m) {
  m.impl("nade", nade_cpu);
  m.impl("nade_log_prob_forward", nade_log_prob_forward_cpu);
  m.impl("nade_backward", nade_backward_cpu);
  m.impl("nade_sample", nade_sample_cpu);
}

}  // namespace ar_fast
