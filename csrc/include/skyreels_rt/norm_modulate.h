// SPDX-License-Identifier: Apache-2.0
// LayerNorm, then a weight and a bias for each segment of tokens (kernels/norm_modulate.py).
#pragma once

#include <cstdint>

#include "skyreels_rt/isa.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt {

struct NormModulateParams {
  const void* x;  // (B, L, D), last dimension dense
  void* y;        // (B, L, D), dense
  SegmentTable weight;
  SegmentTable bias;  // of as many segments as weight
  int64_t batch, length, width;
  int64_t stride_batch, stride_row;  // of x, elements
  float eps;
  DType dtype;
};

// Rows [begin, end) of the B * L rows.
SKYREELS_RT_KERNEL(norm_modulate, const NormModulateParams& params, int64_t begin, int64_t end)

// The whole operator on num_threads threads. Arguments must have been checked by the caller.
void norm_modulate(const NormModulateParams& params, Isa isa, int num_threads);

}  // namespace skyreels_rt
