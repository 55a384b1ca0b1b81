// SPDX-License-Identifier: Apache-2.0
// Float frames in [-1, 1], planes first, to uint8 RGB, channels last (kernels/frames_to_uint8.py).
#pragma once

#include <cstdint>

#include "skyreels_rt/isa.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt {

struct FramesToUint8Params {
  const void* src;         // (3, F, H, W), each H x W plane dense
  uint8_t* dst;            // (F, H, W, 3), dense
  int64_t num_frames;      // F
  int64_t plane;           // H * W
  int64_t stride_channel;  // elements
  int64_t stride_frame;    // elements
  DType dtype;
};

// Pixels [begin, end) of the F * plane pixels, counted frame after frame.
SKYREELS_RT_KERNEL(frames_to_uint8, const FramesToUint8Params& params, int64_t begin, int64_t end)

// The whole operator on num_threads threads. Arguments must have been checked by the caller.
void frames_to_uint8(const FramesToUint8Params& params, Isa isa, int num_threads);

}  // namespace skyreels_rt
