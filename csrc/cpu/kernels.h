// SPDX-License-Identifier: Apache-2.0
// The single-thread kernels of one instruction set, as csrc/cpu/table.cpp lists them.
#pragma once

#include "skyreels_rt/cpu_kernels.h"

namespace skyreels_rt::SKYREELS_RT_ISA {

void frames_to_uint8(const FramesToUint8Params& params, int64_t begin, int64_t end);
void qk_norm_rope(const QkNormRopeParams& params, int64_t begin, int64_t end, float* scratch);

}  // namespace skyreels_rt::SKYREELS_RT_ISA
