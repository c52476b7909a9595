// One-pass sampling of a masked perceptron (MADE): the front door, and what the CPU and the CUDA implementations share.
// The schedule is in kernels/masked_mlp.h.
//
// Shapes: state (B, R_in + sum of hidden units); weights: L hidden layers and the output layer, (units, units of the
// layer before), R_in columns of the first and R_out rows of the last, by position; biases (units), the first also
// (B, units); extents (units) int32; unit_ends: L of (D) int32; order (D) int64; in_offsets and out_offsets (D + 1)
// int64 by position; given and known (B, D) by variable.
// Types: the weights share one of float32, float64, bfloat16, float16; state, given, values have the compute type; a
// bias has the weights' type or the compute type.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "../kernels/masked_mlp.h"
#include "common.h"
#include "head.h"

namespace ar_fast {

// Draws positions start ... stop-1 -> values (B, stop - start) by position, log_prob (B) float64 of the drawn ones, the
// state after them
std::tuple<at::Tensor, at::Tensor, at::Tensor> masked_mlp_sample(
    const at::Tensor& state, at::TensorList weights, at::TensorList biases, at::TensorList extents,
    at::TensorList unit_ends, const OptionalTensor& order, const OptionalTensor& in_offsets,
    const OptionalTensor& out_offsets, const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
    std::string activation, std::string head, int64_t levels, int64_t seed, int64_t first_index, int64_t start,
    int64_t stop, double temperature, std::string algorithm);

// --- shared by the implementations

MlpActivation parse_mlp_activation(const std::string& name);

// Structure only: shapes, dtypes, devices. Never synchronises.
void check_masked_mlp_sample(const at::Tensor& state, at::TensorList weights, at::TensorList biases,
                             at::TensorList extents, at::TensorList unit_ends, const OptionalTensor& order,
                             const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                             const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
                             const Head& head, int64_t start, int64_t stop, double temperature);

// Contiguous tensors of the kernels' types, the outputs, and the structure that points into them.
struct MaskedMlpTensors {
  std::vector<at::Tensor> kept;
  at::Tensor state, values, log_prob;
  MaskedMlpSample sample;
};

MaskedMlpTensors prepare_masked_mlp(const at::Tensor& state, at::TensorList weights, at::TensorList biases,
                                    at::TensorList extents, at::TensorList unit_ends, const OptionalTensor& order,
                                    const OptionalTensor& in_offsets, const OptionalTensor& out_offsets,
                                    const OptionalTensor& given, const OptionalTensor& known, int64_t variables,
                                    MlpActivation activation, const Head& head, int64_t seed, int64_t first_index,
                                    int64_t start, int64_t stop, double temperature);

}  // namespace ar_fast
