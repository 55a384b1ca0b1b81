// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/causal_conv3d.h"

#include <memory>

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {

void causal_conv3d(const CausalConv3dParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, causal_conv3d);
  parallel_for(num_threads, params.batch * conv_blocks(params), 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> scratch(new float[conv_scratch(params)]);
    kernel(params, begin, end, scratch.get());
  });
}

void pack_conv_weight(const PackConvWeightParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, pack_conv_weight);
  constexpr int64_t kRowBytes = kPoints * kPanel * sizeof(float);
  parallel_for(num_threads, packed_rows(params), kBytesPerRange / kRowBytes + 1,
               [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

}  // namespace skyreels_rt
