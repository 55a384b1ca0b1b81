// SPDX-License-Identifier: Apache-2.0
// Softmax attention of all queries over all keys (kernels/dense_attention.py).
#pragma once

#include <cstdint>

#include "skyreels_rt/isa.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt {

// Of a (B, N, L, K) tensor whose last dimension is dense; elements.
struct HeadStrides {
  int64_t batch, head, row;
};

struct DenseAttentionParams {
  const void* q;        // (B, N, L, K)
  const void* k;        // (B, N, S, K)
  const void* v;        // (B, N, S, K)
  void* out;            // (B, N, L, K)
  float* maxima;        // (B, N, L), dense: largest score in units of ln 2; or null
  float* exponentials;  // (B, N, L), dense: sum of 2^(score - maximum); with maxima
  int64_t batch, heads, queries, keys, head_dim;
  HeadStrides q_strides, k_strides, v_strides, out_strides;
  DType dtype;
};

// Queries are dealt out in groups that fill the vectors of every build; keys are met in blocks of
// fixed size, so that a query's sums are added in the same order wherever it is computed.
constexpr int64_t kQueryGroup = 48;
constexpr int64_t kKeyBlock = 128;

constexpr int64_t query_tiles(const DenseAttentionParams& p, int64_t tile) {
  return (p.queries + tile - 1) / tile;
}

// Items [begin, end) of the B * N * query_tiles() items, tiles fastest. `tile` is a multiple of
// kQueryGroup; scratch holds attention_scratch_floats() floats.
SKYREELS_RT_KERNEL(dense_attention, const DenseAttentionParams& params, int64_t tile, int64_t begin,
                   int64_t end, float* scratch)

// Transposed queries and outputs of a tile; a block of keys and of values; the scores of a group,
// or its queries as they came; maxima and sums.
constexpr int64_t attention_scratch_floats(int64_t head_dim, int64_t tile) {
  const int64_t width = (head_dim + 7) / 8 * 8;
  const int64_t longest = width > kKeyBlock ? width : kKeyBlock;
  return 2 * width * tile + 2 * width * kKeyBlock + longest * kQueryGroup + 2 * tile;
}

// The whole operator on num_threads threads. Arguments must have been checked by the caller.
void dense_attention(const DenseAttentionParams& params, Isa isa, int num_threads);

}  // namespace skyreels_rt
