// Sampling of recurrent models on the CPU: what kernels/cpu/rnn.cpp provides to the ops.
#pragma once

#include "../rnn.h"
#include "dispatch.h"

namespace ar_fast {

// The threads that go through the positions together; each has a share of the hidden units.
struct RnnTeam {
  int64_t parts, part;
  void (*wait)();                  // returns when all parts have called it; not called with one part
};

struct RnnLayout {
  int64_t shared_bytes;            // for the whole team
  int64_t own_bytes;               // for each part
};

AR_FAST_DECLARE_CPU_KERNEL(rnn_layout, const RnnSample&, RnnLayout* layout)

// One part of a team. The scratch is aligned to 64.
AR_FAST_DECLARE_CPU_KERNEL(rnn_sample, const RnnSample&, const RnnTeam& team, void* shared, void* own)

}  // namespace ar_fast
