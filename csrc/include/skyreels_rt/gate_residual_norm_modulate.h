// SPDX-License-Identifier: Apache-2.0
// Gated residual in place, then its modulated LayerNorm (kernels/gate_residual_norm_modulate.py).
#pragma once

#include <cstdint>

#include "skyreels_rt/isa.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt {

struct GateResidualNormModulateParams {
  void* x;            // (B, L, D), last dimension dense; overwritten
  const void* y;      // (B, L, D), last dimension dense
  void* normed;       // (B, L, D), dense
  SegmentTable gate;  // data may be null: a plain residual
  SegmentTable weight;
  SegmentTable bias;  // of as many segments as weight
  int64_t batch, length, width;
  int64_t x_stride_batch, x_stride_row;  // elements
  int64_t y_stride_batch, y_stride_row;  // elements
  float eps;
  DType dtype;
};

// Floats of scratch for rows of `width` values.
constexpr int64_t gate_residual_norm_modulate_scratch(int64_t width) { return 4 * width; }

// Rows [begin, end) of the B * L rows.
SKYREELS_RT_KERNEL(gate_residual_norm_modulate, const GateResidualNormModulateParams& params,
                   int64_t begin, int64_t end, float* scratch)

// The whole operator on num_threads threads. Arguments must have been checked by the caller.
void gate_residual_norm_modulate(const GateResidualNormModulateParams& params, Isa isa,
                                 int num_threads);

}  // namespace skyreels_rt
