// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/teacache_gate.h"

#include <cmath>
#include <vector>

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {
namespace {

// The ratio's polynomial added to what was accumulated; fp64 up to the last rounding.
float accumulate(const TeacacheGateParams& p, const std::vector<double>& sums) {
  double change = 0.0;
  double size = 0.0;
  for (size_t i = 0; i < sums.size(); i += 2) {
    change += sums[i];
    size += sums[i + 1];
  }
  const double ratio = change / size;
  double estimate = 0.0;
  for (int i = 0; i < p.num_coefficients; ++i) estimate = estimate * ratio + p.coefficients[i];
  return static_cast<float>(static_cast<double>(*p.accumulated) + estimate);
}

}  // namespace

void teacache_gate(const TeacacheGateParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, teacache_gate);
  float total = 0.0f;
  bool skip = false;
  if (!params.forced) {
    const int64_t num_chunks = (params.count + kChunk - 1) / kChunk;
    std::vector<double> sums(static_cast<size_t>(2 * num_chunks));
    // So little work a byte that another thread pays late only.
    const int64_t grain = 8 * kBytesPerRange / (2 * kChunk * element_size(params.dtype));
    parallel_for(num_threads, num_chunks, grain,
                 [&](int64_t begin, int64_t end) { kernel(params, begin, end, sums.data()); });
    total = accumulate(params, sums);
    skip = total < params.threshold && std::isfinite(total);
  }
  *params.accumulated = skip ? total : 0.0f;
  *params.skip = skip ? 1 : 0;
}

}  // namespace skyreels_rt
