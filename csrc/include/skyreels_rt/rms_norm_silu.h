// SPDX-License-Identifier: Apache-2.0
// RMS norm over the channels of a video, and SiLU where asked (kernels/rms_norm_silu.py).
#pragma once

#include <cstdint>

#include "skyreels_rt/isa.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt {

struct RmsNormSiluParams {
  const void* x;                       // (B, C, P), or (B, P, C) where channels_last; dense
  void* y;                             // as x
  const float* gamma;                  // (C)
  int64_t batch, channels, positions;  // B, C, P = T * H * W
  DType dtype;
  bool channels_last;
  bool silu;
};

// Positions handled together where they are contiguous: their channels are read in runs of this
// length, far apart, and kept in scratch, which holds C times as many floats.
constexpr int64_t kPositionBlock = 128;

// Positions [begin, end) of the B * P positions.
SKYREELS_RT_KERNEL(rms_norm_silu, const RmsNormSiluParams& params, int64_t begin, int64_t end,
                   float* scratch)

// The whole operator on num_threads threads. Arguments must have been checked by the caller.
void rms_norm_silu(const RmsNormSiluParams& params, Isa isa, int num_threads);

}  // namespace skyreels_rt
