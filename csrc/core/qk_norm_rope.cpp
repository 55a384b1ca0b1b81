// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/qk_norm_rope.h"

#include <vector>

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {

void qk_norm_rope(const QkNormRopeParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, qk_norm_rope);
  const int64_t row_bytes = 4 * params.num_heads * params.head_dim * element_size(params.dtype);
  parallel_for(num_threads, params.batch * params.length, kBytesPerRange / (row_bytes + 1) + 1,
               [&](int64_t begin, int64_t end) {
                 std::vector<float> scratch(2 * params.head_dim);
                 kernel(params, begin, end, scratch.data());
               });
}

}  // namespace skyreels_rt
