// SPDX-License-Identifier: Apache-2.0
// x += residual (kernels/residual_apply.py).
#pragma once

#include <cstdint>

#include "skyreels_rt/isa.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt {

// All dense and of one layout, `count` elements each.
struct ResidualApplyParams {
  void* x;  // overwritten
  const void* residual;
  int64_t count;
  DType dtype;
};

// Elements [begin, end).
SKYREELS_RT_KERNEL(residual_apply, const ResidualApplyParams& params, int64_t begin, int64_t end)

// The whole operator on num_threads threads. Arguments must have been checked by the caller.
void residual_apply(const ResidualApplyParams& params, Isa isa, int num_threads);

}  // namespace skyreels_rt
