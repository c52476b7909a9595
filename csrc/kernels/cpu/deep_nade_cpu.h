// Sampling of an orderless NADE of several layers on the CPU: what kernels/cpu/deep_nade.cpp offers to the ops floor.
#pragma once

#include "../deep_nade.h"
#include "dispatch.h"
#include "team.h"

namespace ar_fast {

AR_FAST_DECLARE_CPU_KERNEL(deep_nade_layout, const DeepNadeSample&, TeamLayout* layout)

// One part of a team. The scratch is aligned to 64.
AR_FAST_DECLARE_CPU_KERNEL(deep_nade_sample, const DeepNadeSample&, const Team& team, void* shared, void* own)

}  // namespace ar_fast
