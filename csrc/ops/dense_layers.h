// The checks of dense layers that samplers of several hidden layers have after the first: weights (H_l, H_{l-1}) and
// biases (H_l), then an output out_weight (R_out, H_L) and out_bias (R_out).
#pragma once

#include <string>

#include "common.h"

namespace ar_fast {

// A weight (rows, inputs) of the dtype and on the device of in_weight.
inline void check_matrix(const char* op, const char* name, const at::Tensor& weight, const c10::SymInt& inputs,
                         const at::Tensor& in_weight) {
  check_dim(op, name, weight, 2, "(rows, H)");
  check_size(op, name, weight, 1, inputs, "columns, one per unit of the layer before,");
  check_same_dtype(op, name, weight, "in_weight", in_weight);
  check_same_device(op, name, weight, "in_weight", in_weight);
}

inline void check_bias_of(const char* op, const char* name, const at::Tensor& bias, const at::Tensor& weight,
                          const at::Tensor& in_weight) {
  check_dim(op, name, bias, 1, "(rows)");
  check_size(op, name, bias, 0, weight.sym_size(0), "entries, one per row of its weight,");
  check_same_dtype(op, name, bias, "in_weight", in_weight);
  check_same_device(op, name, bias, "in_weight", in_weight);
}

// All of them, above in_weight (rows, H_1).
inline void check_dense_layers(const char* op, at::TensorList weights, at::TensorList biases,
                               const at::Tensor& out_weight, const at::Tensor& out_bias, const at::Tensor& in_weight,
                               int64_t most_layers) {
  TORCH_CHECK(static_cast<int64_t>(weights.size()) <= most_layers, op, ": weights must hold at most ", most_layers,
              " layers, got ", weights.size());
  TORCH_CHECK(weights.size() == biases.size(), op, ": biases must hold one tensor per layer of weights, ",
              weights.size(), ", got ", biases.size());
  c10::SymInt units = in_weight.sym_size(1);
  for (size_t l = 0; l < weights.size(); ++l) {
    const std::string index = "[" + std::to_string(l) + "]", weight = "weights" + index, bias = "biases" + index;
    check_matrix(op, weight.c_str(), weights[l], units, in_weight);
    check_bias_of(op, bias.c_str(), biases[l], weights[l], in_weight);
    units = weights[l].sym_size(0);
    TORCH_CHECK(units > 0, op, ": ", weight, " must have at least one row, got shape ", weights[l].sym_sizes());
  }
  check_matrix(op, "out_weight", out_weight, units, in_weight);
  check_bias_of(op, "out_bias", out_bias, out_weight, in_weight);
}

}  // namespace ar_fast
