// The parts of the NADE backward for any number of weight rows per variable, and the gradients of the inputs.
// Called by nade_backward.cu, whose header comment says how the parts fit together.
#pragma once

#include "nade_device.h"

namespace ar_fast::cuda {

// Tiles of one position. Writes the rows of grad_out_weight, and sums [tiles, B, H] = delta.
template <typename S>
cudaError_t nade_backward_out_rows(const NadeArguments<S>& arguments, const NadeTiles& tiles, const Compute<S>* grad,
                                   const Compute<S>* states, Compute<S>* sums, S* grad_out_weight, cudaStream_t stream);

// Tiles of one position; sums [tiles, B, H] of delta over later positions. Writes the rows of grad_in_weight.
template <typename S>
cudaError_t nade_backward_in_rows(const NadeArguments<S>& arguments, const NadeTiles& tiles, const Compute<S>* sums,
                                  S* grad_in_weight, cudaStream_t stream);

// Tiles of 1 or 16 positions. Writes grad_x and grad_activation_scale [B, D], each if it is not null.
template <typename S>
cudaError_t nade_backward_inputs(const NadeArguments<S>& arguments, const NadeTiles& tiles, const Compute<S>* grad,
                                 const Compute<S>* states, const Compute<S>* sums, Compute<S>* grad_x,
                                 Compute<S>* grad_activation_scale, cudaStream_t stream);

}  // namespace ar_fast::cuda
