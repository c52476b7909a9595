// Checks and conversions that the entry points of all ops share. Each error names the argument, the rule and the given
// value.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "../kernels/types.h"

namespace ar_fast {

using OptionalTensor = std::optional<at::Tensor>;

// Python's name of a dtype.
inline std::string dtype_name(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return "float32";
    case at::kDouble: return "float64";
    case at::kHalf: return "float16";
    case at::kBFloat16: return "bfloat16";
    case at::kLong: return "int64";
    case at::kInt: return "int32";
    case at::kBool: return "bool";
    default: return c10::toString(type);
  }
}

inline ScalarType storage_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return ScalarType::float32;
    case at::kHalf: return ScalarType::float16;
    case at::kBFloat16: return ScalarType::bfloat16;
    case at::kDouble: return ScalarType::float64;
    default: TORCH_CHECK(false, "ar_fast: no kernel for dtype ", dtype_name(type));
  }
}

// The type of arithmetic, head parameters and log-probabilities.
inline at::ScalarType compute_type(at::ScalarType storage) {
  return storage == at::kDouble ? at::kDouble : at::kFloat;
}

inline at::TensorOptions compute_options(const at::Tensor& weight) {
  return weight.options().dtype(compute_type(weight.scalar_type()));
}

inline at::Tensor or_undefined(const OptionalTensor& tensor) { return tensor.has_value() ? *tensor : at::Tensor(); }

inline at::Tensor contiguous_or_undefined(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined() ? tensor->contiguous() : at::Tensor();
}

template <typename T>
const T* pointer_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

// The rules below use symbolic sizes, so that they also serve the fake (Meta) implementations under torch.compile.
inline void check_dim(const char* op, const char* name, const at::Tensor& tensor, int64_t dim, const char* shape) {
  TORCH_CHECK(tensor.dim() == dim, op, ": ", name, " must have shape ", shape, ", got ", tensor.sym_sizes());
}

inline void check_size(const char* op, const char* name, const at::Tensor& tensor, int64_t dim, const c10::SymInt& size,
                       const char* rule) {
  TORCH_CHECK(tensor.sym_size(dim) == size, op, ": ", name, " must have ", size, " ", rule, " in dimension ", dim,
              ", got shape ", tensor.sym_sizes());
}

inline void check_floating(const char* op, const char* name, const at::Tensor& tensor) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf, op, ": ", name,
              " must be float32, float64, bfloat16 or float16, got ", dtype_name(type));
}

inline void check_same_dtype(const char* op, const char* name, const at::Tensor& tensor, const char* other_name,
                             const at::Tensor& other) {
  TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), op, ": ", name, " must have the dtype of ", other_name, ", ",
              dtype_name(other.scalar_type()), ", got ", dtype_name(tensor.scalar_type()));
}

inline void check_same_device(const char* op, const char* name, const at::Tensor& tensor, const char* other_name,
                              const at::Tensor& other) {
  TORCH_CHECK(tensor.device() == other.device(), op, ": ", name, " must be on the device of ", other_name, ", ",
              other.device(), ", got ", tensor.device());
}

inline void check_dtype(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType type) {
  TORCH_CHECK(tensor.scalar_type() == type, op, ": ", name, " must be ", dtype_name(type), ", got ",
              dtype_name(tensor.scalar_type()));
}

inline void check_algorithm(const char* op, std::string_view algorithm, std::initializer_list<const char*> names) {
  std::string known;
  for (const char* name : names) {
    if (algorithm == name) return;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  TORCH_CHECK(false, op, ": algorithm must be one of ", known, ", got '", algorithm, "'");
}

}  // namespace ar_fast
