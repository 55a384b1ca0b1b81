// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/norm_modulate.h"

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {

void norm_modulate(const NormModulateParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, norm_modulate);
  const int64_t row_bytes = 2 * params.width * element_size(params.dtype);
  parallel_for(num_threads, params.batch * params.length, kBytesPerRange / row_bytes + 1,
               [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

}  // namespace skyreels_rt
