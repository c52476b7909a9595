#include "draws.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <limits>
#include <string>
#include <utility>

#include "coding.h"
#include "head.h"

namespace ar_fast {

void check_draws(const DrawArguments& a, const c10::SymInt& variables, at::ScalarType type, const char* weight_name,
                 const at::Tensor& weight) {
  if (a.order.has_value()) {
    check_dim(a.op, "order", *a.order, 1, "(D)");
    check_size(a.op, "order", *a.order, 0, variables, "entries, one per variable,");
    check_dtype(a.op, "order", *a.order, at::kLong);
    check_same_device(a.op, "order", *a.order, weight_name, weight);
  }
  if (a.transforms) {
    TORCH_CHECK(a.given.has_value(), a.op, ": given must hold the numbers that a transform is applied to, got none");
    TORCH_CHECK(a.temperature == 1, a.op, ": temperature must be 1 for a transform, got ", a.temperature);
  } else {
    TORCH_CHECK(a.given.has_value() == a.known.has_value(), a.op, ": given and known come together, got only ",
                a.given.has_value() ? "given" : "known");
  }
  const auto check_values = [&](const char* name, const OptionalTensor& tensor, at::ScalarType dtype) {
    if (!tensor.has_value()) return;
    check_dim(a.op, name, *tensor, 2, "(B, D)");
    const std::string rows = std::string("rows, as ") + a.state_name + " has,";
    check_size(a.op, name, *tensor, 0, a.state.sym_size(0), rows.c_str());
    check_size(a.op, name, *tensor, 1, variables, "variables");
    check_same_device(a.op, name, *tensor, a.state_name, a.state);
    check_dtype(a.op, name, *tensor, dtype);
  };
  check_values("given", a.given, type);
  check_values("known", a.known, at::kBool);
  TORCH_CHECK(0 <= a.start && a.start <= a.stop && variables >= a.stop, a.op,
              ": positions must satisfy 0 <= start <= stop <= D = ", variables, ", got start = ", a.start, ", stop = ",
              a.stop);
  // The numbers of rows and of variables are counters of the random numbers.
  constexpr int64_t last = std::numeric_limits<int64_t>::max();
  TORCH_CHECK(a.first_index >= 0 && a.state.sym_size(0) <= last - a.first_index, a.op,
              ": first_index must be at least 0, and with the rows at most 2^63 - 1, got ", a.first_index, " and ",
              a.state.sym_size(0), " rows");
  TORCH_CHECK(a.first_position <= 0 || variables <= last - a.first_position, a.op,
              ": first_position must be at most 2^63 - 1 with D, got ", a.first_position);
  TORCH_CHECK(a.temperature > 0, a.op, ": temperature must be positive, got ", a.temperature);
}

void check_truncation(const DrawArguments& a, const Head& head, const c10::SymInt& categories) {
  const bool categorical = head.kind == HeadKind::categorical;
  TORCH_CHECK(categorical || (a.top_k == 0 && a.top_p == 1), a.op,
              ": top_k and top_p must be 0 and 1 except for a categorical head, got ", a.top_k, " and ", a.top_p);
  TORCH_CHECK(a.top_k >= 0 && (!categorical || categories >= a.top_k), a.op,
              ": top_k must be 0 for all categories, or 1 ... K = ", categories, ", got ", a.top_k);
  TORCH_CHECK(a.top_p > 0 && a.top_p <= 1, a.op, ": top_p must lie in (0, 1], got ", a.top_p);
}

DrawTensors prepare_draws(const DrawArguments& a, const Head& head, int64_t variables) {
  const int64_t batch = a.state.size(0), count = a.stop - a.start;
  DrawTensors t;
  t.order = contiguous_or_undefined(a.order);
  t.given = contiguous_or_undefined(a.given);
  t.known = contiguous_or_undefined(a.known);
  t.values = at::empty({batch, count}, a.state.options());
  t.log_prob = at::zeros({batch}, a.state.options().dtype(at::kDouble));
  t.draws.head = with_kinds(head, a.head_kinds, t.head_kinds);
  t.draws.batch = batch;
  t.draws.variables = variables;
  t.draws.order = pointer_or_null<int64_t>(t.order);
  t.draws.start = a.start;
  t.draws.stop = a.stop;
  t.draws.seed = static_cast<uint64_t>(a.seed);
  t.draws.first_index = a.first_index;
  t.draws.first_variable = a.first_position;
  t.draws.top_k = a.top_k;
  t.draws.top_p = a.top_p;
  t.draws.temperature = a.temperature;
  t.draws.given = pointer_or_null<void>(t.given);
  t.draws.known = pointer_or_null<uint8_t>(t.known);
  t.draws.values = t.values.mutable_data_ptr();
  t.draws.values_stride = count;
  t.draws.log_prob = t.log_prob.mutable_data_ptr<double>();
  if (Coder* coder = current_coder()) {
    TORCH_CHECK(a.state.is_cpu(), a.op, ": values are coded on the CPU only, got ", a.state_name, " on ",
                a.state.device());
    coder->attach(a, variables, t);
  }
  return t;
}

SampleResult empty_samples(const DrawArguments& a) {
  const c10::SymInt batch = a.state.sym_size(0);
  return {at::empty_symint({batch, a.stop - a.start}, a.state.options()),
          at::empty_symint({batch}, a.state.options().dtype(at::kDouble)),
          at::empty_symint(a.state.sym_sizes(), a.state.options())};
}

}  // namespace ar_fast
