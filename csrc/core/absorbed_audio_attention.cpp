// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/absorbed_audio_attention.h"

#include <vector>

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {

void group_softmax(const GroupSoftmaxParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, group_softmax);
  const int64_t item_bytes = kSoftmaxRows * params.num_heads * params.tokens * 8;
  parallel_for(num_threads, params.frames * softmax_blocks(params.rows),
               kBytesPerRange / item_bytes + 1, [&](int64_t begin, int64_t end) {
                 std::vector<float> scratch(16 * params.tokens);
                 kernel(params, begin, end, scratch.data());
               });
}

}  // namespace skyreels_rt
