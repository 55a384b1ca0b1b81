// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/gate_residual_norm_modulate.h"

#include <memory>

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {

void gate_residual_norm_modulate(const GateResidualNormModulateParams& params, Isa isa,
                                 int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, gate_residual_norm_modulate);
  const int64_t row_bytes = 4 * params.width * element_size(params.dtype);
  parallel_for(num_threads, params.batch * params.length, kBytesPerRange / row_bytes + 1,
               [&](int64_t begin, int64_t end) {
                 const std::unique_ptr<float[]> scratch(
                     new float[gate_residual_norm_modulate_scratch(params.width)]);
                 kernel(params, begin, end, scratch.get());
               });
}

}  // namespace skyreels_rt
