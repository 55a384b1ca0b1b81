// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/audio_cross_attention.h"

#include <algorithm>
#include <vector>

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {

void audio_cross_attention(const AudioCrossAttentionParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, audio_cross_attention);
  const int64_t items =
      params.batch * params.frames * audio_tiles(params.patches) * params.num_heads;
  // Arithmetic, not memory, is what an item costs.
  const int64_t work =
      std::min(kAudioTile, params.patches) * params.head_dim * (params.tokens + 8) / 2;
  parallel_for(num_threads, items, kBytesPerRange / (work + 1) + 1,
               [&](int64_t begin, int64_t end) {
                 std::vector<float> scratch(audio_scratch_floats(params.tokens, params.head_dim));
                 kernel(params, begin, end, scratch.data());
               });
}

}  // namespace skyreels_rt
