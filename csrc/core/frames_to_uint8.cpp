// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/frames_to_uint8.h"

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {

void frames_to_uint8(const FramesToUint8Params& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, frames_to_uint8);
  const int64_t grain = kBytesPerRange / (3 * element_size(params.dtype) + 3);
  parallel_for(num_threads, params.num_frames * params.plane, grain,
               [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

}  // namespace skyreels_rt
