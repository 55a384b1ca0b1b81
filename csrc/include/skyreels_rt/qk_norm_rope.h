// SPDX-License-Identifier: Apache-2.0
// Full-width RMSNorm and rotary embedding of q and k, in place (kernels/qk_norm_rope.py).
#pragma once

#include <cstdint>

#include "skyreels_rt/isa.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt {

struct QkNormRopeParams {
  void* q;                // (B, L, N * K), last dimension dense
  void* k;                // (B, L, N * K), last dimension dense
  const float* weight_q;  // (N * K)
  const float* weight_k;  // (N * K)
  const float* cos;       // (L, K / 2), dense
  const float* sin;       // (L, K / 2), dense
  int64_t batch, length, num_heads, head_dim;
  int64_t q_stride_batch, q_stride_row;  // elements
  int64_t k_stride_batch, k_stride_row;  // elements
  float eps;
  DType dtype;
};

// Rows [begin, end) of the B * L rows. scratch holds 2 * head_dim floats.
SKYREELS_RT_KERNEL(qk_norm_rope, const QkNormRopeParams& params, int64_t begin, int64_t end,
                   float* scratch)

// The whole operator on num_threads threads. Arguments must have been checked by the caller.
void qk_norm_rope(const QkNormRopeParams& params, Isa isa, int num_threads);

}  // namespace skyreels_rt
