#include "autocast.h"

#include "armlp.h"
#include "deep_nade.h"
#include "fvsbn.h"
#include "inverse_adjoint.h"
#include "masked_mlp.h"
#include "masked_mlp_flow.h"
#include "nade.h"
#include "offset_nade.h"
#include "rnn.h"
#include "univariate_transform.h"

namespace ar_fast {
namespace {

template <typename... Arguments>
void register_float32(torch::Library& m) {
  (implement<float32_autocast<Arguments>>(m), ...);
}

constexpr auto register_all =
    register_float32<ArmlpSampleArguments, DeepNadeSampleArguments, FvsbnSampleArguments, InverseAdjointArguments,
                     MaskedMlpFlowArguments, MaskedMlpSampleArguments, NadeSampleArguments, OffsetNadeSampleArguments,
                     RnnSampleArguments, UnivariateTransformArguments>;

}  // namespace

TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCPU, m) { register_all(m); }
TORCH_LIBRARY_IMPL(AR_FAST_LIBRARY, AutocastCUDA, m) { register_all(m); }

}  // namespace ar_fast
