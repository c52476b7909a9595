// Sampling of recurrent models on CUDA: the launcher. The contract is in kernels/rnn.h; every pointer is device memory.
//
// The work is enqueued on `stream` without a synchronisation. The order of a row's additions depends only on H and on
// which of the two kernels runs, for which the batch does not count. So a row does not depend on the batch it is drawn
// in, on how the work is split, or on where a call ends.
#pragma once

#include "../rnn.h"
#include "launcher.h"

namespace ar_fast {

// How the work is split. Rows are split among teams of blocks; a team goes through the positions together. A team of
// one block does everything. In a larger team, the units of every layer are split among unit blocks, and the rows among
// draw blocks, which compute the parameters and draw.
struct RnnCut {
  int64_t teams, rows;             // at most `rows` rows per team
  int64_t unit_blocks, units;      // per team; at most `units` units per block
  int64_t draw_blocks;             // per team; 0 means that its one block does everything
  bool weights_on_chip;            // a unit block keeps its rows of every weight in shared memory
  bool out_weight_on_chip;         // a block that draws keeps out_weight in shared memory
  bool parameters_on_chip;
  int64_t shared_bytes;
  int64_t padded;                  // units of a state in scratch, rounded up to whole vectors
  bool matrix;                     // by matrix instructions (rnn_matrix.cu); a team has one draw block then
  const char* obstacle;            // why a grid is without them; null if it was not to have them

  int64_t blocks() const { return teams * (unit_blocks + draw_blocks); }
};

enum class RnnTeams : int32_t { automatic, one_block, grid };

// Asks the device for its limits, without synchronising.
cudaError_t rnn_cuda_cut(const RnnSample& sample, RnnTeams teams, RnnCut& cut);

struct RnnScratch {
  void* states;                    // [2, L, B, padded] compute: the first has the state before start, both have 0
                                   // after unit H - 1; written. Afterwards the state is number (stop - start) % 2
  void* parameters;                // [B, K] compute; null if they are on chip
  int* arrived;                    // [teams], all 0
  uint64_t* published;             // [B], all 0; null if a team is one block
  uint64_t* words;                 // [B, 2, padded], all 0; null without cut.matrix
};

// batch > 0 and stop > start; (stop - start) L unit_blocks and (stop - start) draw_blocks below 2^30. sample.state is
// not touched.
cudaError_t rnn_sample_cuda(const RnnSample& sample, const RnnCut& cut, const RnnScratch& scratch, cudaStream_t stream);

}  // namespace ar_fast
