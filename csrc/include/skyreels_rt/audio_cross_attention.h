// SPDX-License-Identifier: Apache-2.0
// Attention of each latent frame over its own audio tokens (kernels/audio_cross_attention.py).
#pragma once

#include <cstdint>

#include "skyreels_rt/isa.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt {

struct AudioCrossAttentionParams {
  const void* q;              // (B, F * P, N * K), last dimension dense
  const void* k;              // (B, F, M, N * K) or (B, T, N * K), last dimension dense
  const void* v;              // as k
  void* out;                  // (B, F * P, N * K), dense
  const int32_t* ranges;      // (F, 2) start and count of each frame's tokens, dense; or null
  const uint8_t* token_mask;  // 0 for tokens not attended, or null
  const float* gate;          // (B, F), dense, or null
  const float* norm_weight;   // (N * K), or null
  int64_t batch, frames, patches;
  int64_t tokens;  // of a frame; with ranges the most of any
  int64_t num_heads, head_dim;
  int64_t q_stride_batch, q_stride_row;                  // elements
  int64_t k_stride_batch, k_stride_frame, k_stride_row;  // elements; with ranges no frame stride
  int64_t v_stride_batch, v_stride_frame, v_stride_row;
  int64_t mask_stride_batch, mask_stride_frame;
  float eps;
  DType dtype;
};

// Fills in what both libraries take as arrays: sizes B, F, P, M, N, K and the ten strides, in the
// order of the fields.
inline void set_layout(AudioCrossAttentionParams& p, const int64_t* sizes, const int64_t* strides) {
  p.batch = sizes[0];
  p.frames = sizes[1];
  p.patches = sizes[2];
  p.tokens = sizes[3];
  p.num_heads = sizes[4];
  p.head_dim = sizes[5];
  p.q_stride_batch = strides[0];
  p.q_stride_row = strides[1];
  p.k_stride_batch = strides[2];
  p.k_stride_frame = strides[3];
  p.k_stride_row = strides[4];
  p.v_stride_batch = strides[5];
  p.v_stride_frame = strides[6];
  p.v_stride_row = strides[7];
  p.mask_stride_batch = strides[8];
  p.mask_stride_frame = strides[9];
}

// Queries of one work item: few enough that their rows stay in the cache over all heads, many
// enough that preparing keys and values is cheap beside them.
constexpr int64_t kAudioTile = 256;

// Items [begin, end) of the B * F * tiles * N items, heads fastest. scratch holds
// audio_scratch_floats() floats.
SKYREELS_RT_KERNEL(audio_cross_attention, const AudioCrossAttentionParams& params, int64_t begin,
                   int64_t end, float* scratch)

constexpr int64_t audio_tiles(int64_t patches) { return (patches + kAudioTile - 1) / kAudioTile; }

// Row scales; transposed keys; values; eight queries and one more; the scores of a block of at most
// 32 queries, and the same transposed; token numbers. Keys and channels go in groups of at most 32.
constexpr int64_t audio_scratch_floats(int64_t tokens, int64_t head_dim) {
  const int64_t keys = (tokens + 31) / 32 * 32;
  const int64_t width = (head_dim + 31) / 32 * 32;
  return kAudioTile + 2 * keys * width + 9 * width + 2 * 32 * keys + keys;
}

// The whole operator on num_threads threads. Arguments must have been checked by the caller.
void audio_cross_attention(const AudioCrossAttentionParams& params, Isa isa, int num_threads);

}  // namespace skyreels_rt
