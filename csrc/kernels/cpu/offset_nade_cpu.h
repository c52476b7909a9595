// NADE with input weights tied by offset on the CPU: what kernels/cpu/offset_nade.cpp provides to the ops.
#pragma once

#include "../offset_nade.h"
#include "dispatch.h"

namespace ar_fast {

struct OffsetNadeLayout {
  int64_t scratch_bytes;           // of a call of a kernel below
  int64_t band_rows;               // rows of the image that a wavefront takes together
};
AR_FAST_DECLARE_CPU_KERNEL(offset_nade_layout, const OffsetNadeSample&, OffsetNadeLayout*)

// Rows [row_begin, row_end) of the batch in raster order. A row's arithmetic does not depend on any other row.
// scratch: scratch_bytes, aligned to 64.
AR_FAST_DECLARE_CPU_KERNEL(offset_nade_sample, const OffsetNadeSample&, int64_t row_begin, int64_t row_end,
                           void* scratch)

// Counts of columns lie in cache lines of their own: each is written by one thread and read by another.
constexpr int64_t offset_nade_drawn_stride = 8;

// What the threads share that draw along wavefronts. The rows of the image that a call draws are cut into bands. A
// thread takes the next band that no thread has, from the top; it follows the band above, which a thread has taken
// before. So any number of threads finishes, one too, whether they run at the same time or not.
struct OffsetNadeFront {
  int64_t bands;
  int64_t* next;                   // [1] the number of bands taken, of all rows of the batch; 0 at first
  int64_t* drawn;                  // [B, bands, offset_nade_drawn_stride] columns drawn of a band's last row; 0 first
  void* terms;                     // [B, stop - start] compute: log p of each value, written; draws.log_prob is not
  void (*wait)(int64_t turn);      // called again and again while a thread waits for another; turn = 0, 1, ...
};

// Takes bands until none is left. Same values as offset_nade_sample's, bit for bit. scratch as there.
AR_FAST_DECLARE_CPU_KERNEL(offset_nade_wavefront, const OffsetNadeSample&, const OffsetNadeFront&, void* scratch)

}  // namespace ar_fast
