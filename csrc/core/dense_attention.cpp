// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/dense_attention.h"

#include <memory>

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {
namespace {

// Queries of an item: many enough that copying the keys is cheap beside them, few enough that every
// thread finds work to the end.
int64_t tile_size(const DenseAttentionParams& p, int num_threads) {
  constexpr int64_t kMostGroups = 4, kItemsPerThread = 16;
  for (int64_t groups = kMostGroups; groups > 1; --groups) {
    const int64_t items = p.batch * p.heads * query_tiles(p, groups * kQueryGroup);
    if (items >= kItemsPerThread * num_threads) return groups * kQueryGroup;
  }
  return kQueryGroup;
}

}  // namespace

void dense_attention(const DenseAttentionParams& params, Isa isa, int num_threads) {
  const auto kernel = SKYREELS_RT_SELECT(isa, dense_attention);
  const int64_t tile = tile_size(params, num_threads);
  const int64_t items = params.batch * params.heads * query_tiles(params, tile);
  const int64_t work = tile * params.head_dim * params.keys / 2;  // arithmetic, not memory
  parallel_for(num_threads, items, kBytesPerRange / (work + 1) + 1,
               [&](int64_t begin, int64_t end) {
                 const int64_t floats = attention_scratch_floats(params.head_dim, tile);
                 const std::unique_ptr<float[]> scratch(new float[floats]);
                 kernel(params, tile, begin, end, scratch.get());
               });
}

}  // namespace skyreels_rt
