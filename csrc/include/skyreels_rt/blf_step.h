// SPDX-License-Identifier: Apache-2.0
// Guidance combine, fusion of overlapping windows and Euler update (kernels/blf_step.py).
#pragma once

#include <cstdint>

#include "skyreels_rt/isa.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt {

constexpr int kMaxPasses = 3;

struct BlfStepParams {
  const float* latents;            // (C, N, h * w), planes dense; null: write the fused velocity
  const void* const* velocities;   // W addresses of (P, C, n, h * w), planes dense
  const int64_t* starts;           // (W), ascending; the windows cover all N latents
  const float* weights;            // (W, n), dense
  float* out;                      // (C, N, h * w), dense
  float guidance[kMaxPasses];      // (P)
  float delta;                     // sigma_next - sigma
  int64_t num_windows;             // W
  int64_t num_passes;              // P
  int64_t window;                  // n
  int64_t channels;                // C
  int64_t length;                  // N
  int64_t num_pinned;              // leading latents that are copied
  int64_t plane;                   // h * w
  int64_t latents_stride_channel;  // elements, as all strides
  int64_t latents_stride_frame;
  int64_t stride_pass, stride_channel, stride_frame;  // of every window's velocities
  DType dtype;                                        // of the velocities
};

// Elements [begin, end) of the C * N * h * w elements of the output.
SKYREELS_RT_KERNEL(blf_step, const BlfStepParams& params, int64_t begin, int64_t end)

// The whole operator on num_threads threads. Arguments must have been checked by the caller.
void blf_step(const BlfStepParams& params, Isa isa, int num_threads);

}  // namespace skyreels_rt
