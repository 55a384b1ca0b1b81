// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

namespace skyreels_rt::SKYREELS_RT_ISA {

const CpuKernels kKernels = {frames_to_uint8, qk_norm_rope};

}  // namespace skyreels_rt::SKYREELS_RT_ISA
