// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/blf_step.h"

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {

void blf_step(const BlfStepParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, blf_step);
  const int64_t bytes = 8 + params.num_passes * element_size(params.dtype);
  parallel_for(num_threads, params.channels * params.length * params.plane, kBytesPerRange / bytes,
               [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

}  // namespace skyreels_rt
