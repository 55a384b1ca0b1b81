// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/causal_conv3d.h"

#include <vector>

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {

namespace {

// Scratch of this thread, kept: fresh memory of this size costs a page fault every 4 KB.
float* thread_scratch(int64_t floats) {
  static thread_local std::vector<float> scratch;
  if (static_cast<int64_t>(scratch.size()) < floats) scratch.resize(static_cast<size_t>(floats));
  return scratch.data();
}

}  // namespace

void causal_conv3d(const CausalConv3dParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, causal_conv3d);
  parallel_for(num_threads, params.batch * conv_blocks(params), 1, [&](int64_t begin, int64_t end) {
    kernel(params, begin, end, thread_scratch(conv_scratch(params)));
  });
}

void pack_conv_weight(const PackConvWeightParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, pack_conv_weight);
  constexpr int64_t kRowBytes = kPoints * kPanel * sizeof(float);
  parallel_for(num_threads, packed_rows(params), kBytesPerRange / kRowBytes + 1,
               [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

}  // namespace skyreels_rt
