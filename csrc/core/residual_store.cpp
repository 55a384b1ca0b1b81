// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/residual_store.h"

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {

void residual_store(const ResidualStoreParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, residual_store);
  // So little work a byte that another thread pays late only.
  const int64_t grain = 2 * kBytesPerRange / (3 * element_size(params.dtype));
  parallel_for(num_threads, params.count, grain,
               [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

}  // namespace skyreels_rt
