// The grid of rnn_sample that multiplies by matrix instructions. Used by rnn.cu only.
#pragma once

#include "rnn_cuda.h"
#include "runtime.h"

namespace ar_fast::cuda {

// What keeps it from taking the sample; null if it takes it. This does not depend on the batch, so that a row has the
// same sums in every batch. A model whose weights one block of rnn.cu holds is not asked for: its rows need no grid.
const char* rnn_matrix_obstacle(const RnnSample& sample, const Device& device);

// How the work is split if nothing is in the way.
void rnn_matrix_cut(const RnnSample& sample, int64_t multiprocessors, RnnCut& cut);

cudaError_t rnn_sample_matrix(const RnnSample& sample, const RnnCut& cut, const RnnScratch& scratch,
                              cudaStream_t stream);

}  // namespace ar_fast::cuda
