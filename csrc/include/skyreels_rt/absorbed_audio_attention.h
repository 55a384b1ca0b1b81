// SPDX-License-Identifier: Apache-2.0
// Softmax over groups of columns, between the two products of the absorbed audio attention
// (kernels/absorbed_audio_attention.py).
#pragma once

#include <cstdint>

#include "skyreels_rt/isa.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt {

struct GroupSoftmaxParams {
  const float* logits;  // (frames, rows, N * M), dense
  const float* shifts;  // (frames, N * M), dense: added to the logits
  void* out;            // (frames, rows, N * M) of dtype, dense
  int64_t frames, rows, num_heads, tokens;
  DType dtype;
};

// Rows of a work item, all of one frame: a multiple of every build's lanes.
constexpr int64_t kSoftmaxRows = 32;

constexpr int64_t softmax_blocks(int64_t rows) { return (rows + kSoftmaxRows - 1) / kSoftmaxRows; }

// Items [begin, end) of the frames * softmax_blocks(rows) items. scratch holds 16 * tokens floats.
SKYREELS_RT_KERNEL(group_softmax, const GroupSoftmaxParams& params, int64_t begin, int64_t end,
                   float* scratch)

// The whole operator on num_threads threads. Arguments must have been checked by the caller.
void group_softmax(const GroupSoftmaxParams& params, Isa isa, int num_threads);

}  // namespace skyreels_rt
