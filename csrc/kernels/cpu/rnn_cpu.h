// Sampling of recurrent models on the CPU: what kernels/cpu/rnn.cpp provides to the ops.
#pragma once

#include "../rnn.h"
#include "dispatch.h"
#include "team.h"

namespace ar_fast {

AR_FAST_DECLARE_CPU_KERNEL(rnn_layout, const RnnSample&, TeamLayout* layout)

// One part of a team. The scratch is aligned to 64.
AR_FAST_DECLARE_CPU_KERNEL(rnn_sample, const RnnSample&, const Team& team, void* shared, void* own)

}  // namespace ar_fast
