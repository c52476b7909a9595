// Sampling of a NADE with input weights tied by offset: the front door, and what the CPU and the CUDA implementations
// share. The arithmetic is in kernels/offset_nade.h.
//
// Shapes: grid = (rows, columns, C), D = rows columns C; window = (up, side), T = up (2 side + 1) + side taps; state
// (B, reach), the values at the last reach = (up columns + side) C + C - 1 positions; in_weight ((T C + C - 1) V, H) with
// V = K for a categorical head, else 1; in_bias (H) or (B, H); out_weight (C K, H), or (D K, H) unless shared_output;
// out_bias; order (D) int64; given and known (B, D) by variable.
// Types: the weights and out_bias share one of float32, float64, bfloat16, float16; in_bias has that or the compute type;
// state, given and values have the compute type.
#pragma once

#include <string>
#include <tuple>

#include "../kernels/offset_nade.h"
#include "common.h"
#include "head.h"

namespace ar_fast {

constexpr const char* offset_nade_name = "offset_nade_sample";

// Draws positions start ... stop-1 -> values (B, stop - start) by position, log_prob (B) float64 of the drawn ones, the
// state after them
std::tuple<at::Tensor, at::Tensor, at::Tensor> offset_nade_sample(
    const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& in_bias, const at::Tensor& out_weight,
    const at::Tensor& out_bias, const OptionalTensor& order, const OptionalTensor& given, const OptionalTensor& known,
    at::IntArrayRef grid, at::IntArrayRef window, bool shared_output, std::string activation, std::string head,
    int64_t levels, int64_t seed, int64_t first_index, int64_t start, int64_t stop, double temperature,
    std::string algorithm);

// --- shared by the implementations

// Structure only: shapes, dtypes, devices. Never synchronises.
void check_offset_nade_sample(const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& in_bias,
                              const at::Tensor& out_weight, const at::Tensor& out_bias, const OptionalTensor& order,
                              const OptionalTensor& given, const OptionalTensor& known, at::IntArrayRef grid,
                              at::IntArrayRef window, bool shared_output, const Head& head, int64_t start, int64_t stop,
                              double temperature);

// Contiguous tensors of the kernels' types, the outputs, and the structure that points into them.
struct OffsetNadeTensors {
  at::Tensor in_weight, in_bias, out_weight, out_bias, order, given, known, history, log_prob;
  OffsetNadeSample sample;
  // What the op returns, once the kernel has run.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> result() const;
};

OffsetNadeTensors prepare_offset_nade_sample(
    const at::Tensor& state, const at::Tensor& in_weight, const at::Tensor& in_bias, const at::Tensor& out_weight,
    const at::Tensor& out_bias, const OptionalTensor& order, const OptionalTensor& given, const OptionalTensor& known,
    at::IntArrayRef grid, at::IntArrayRef window, bool shared_output, const std::string& activation,
    const std::string& head, int64_t levels, int64_t seed, int64_t first_index, int64_t start, int64_t stop,
    double temperature);

}  // namespace ar_fast
