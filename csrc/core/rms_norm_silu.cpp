// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/rms_norm_silu.h"

#include <memory>

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {

void rms_norm_silu(const RmsNormSiluParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, rms_norm_silu);
  // Whole blocks of positions; a range's scratch is used by many of them.
  const int64_t block_bytes = 2 * kPositionBlock * params.channels * element_size(params.dtype);
  const int64_t grain = (kBytesPerRange / block_bytes + 1) * kPositionBlock;
  const int64_t floats = params.channels_last ? 1 : params.channels * kPositionBlock;
  parallel_for(num_threads, params.batch * params.positions, grain,
               [&](int64_t begin, int64_t end) {
                 const std::unique_ptr<float[]> scratch(new float[floats]);
                 kernel(params, begin, end, scratch.get());
               });
}

}  // namespace skyreels_rt
