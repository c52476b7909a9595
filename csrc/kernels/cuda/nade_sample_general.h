// NADE sampling for every head, any number of weight rows per variable and any H. nade_sample.cu calls it, and handles
// the plain Bernoulli case itself.
#pragma once

#include "nade_device.h"

namespace ar_fast::cuda {

constexpr int general_sample_warps = 8;

// Where the state and activations of a sample and the parameters of a variable are stored: in the block's shared memory
// or in scratch.
struct GeneralSamplePlan {
  bool units_shared, parameters_shared;
  int64_t padded;      // H rounded up to whole vectors of the storage type
  int64_t most_rows;   // entries of a buffer for a variable's parameters
  int64_t rows;        // of the batch, in one launch
  int64_t shared_bytes, scratch_bytes;

  static GeneralSamplePlan of(const NadeModel& model, const NadeSample& sample);
};

// scratch: plan.scratch_bytes.
template <typename S>
cudaError_t nade_sample_general(const NadeModel& model, const NadeSample& sample, const GeneralSamplePlan& plan,
                                void* scratch, cudaStream_t stream);

}  // namespace ar_fast::cuda
