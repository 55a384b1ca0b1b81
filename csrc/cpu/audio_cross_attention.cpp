// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/audio_cross_attention.h"

#include "simd.h"
#include "squares.h"
#include "tiles.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

constexpr int kBlock = 2 * kLanes;           // queries whose softmax is computed together
constexpr int kRows = kLanes == 16 ? 8 : 4;  // queries: kRows x 2 accumulators fit the registers

// Scratch of one range of items, and what it holds for the current frame and head.
struct Work {
  float* row_scales;     // (kAudioTile): of the tile's queries
  float* keys;           // groups of kLanes keys, each (K, kLanes)
  float* values;         // (count, width)
  float* queries;        // (kRows, K)
  float* scores;         // (kBlock, padded count)
  float* probabilities;  // (count, kBlock)
  int32_t* tokens;       // (count): the tokens attended
  int64_t count, head_dim, width;
};

inline int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline void normalize(float* x, float row_scale, const float* weight, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, load(x + i) * row_scale * load(weight + i));
  for (; i < n; ++i) x[i] = x[i] * row_scale * weight[i];
}

template <class T>
inline void convert(const T* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = load1(from + i);
}

// Tokens of a frame that are attended; returns how many.
inline int64_t attended_tokens(const AudioCrossAttentionParams& p, int64_t b, int64_t f,
                               int32_t* tokens) {
  const int32_t start = p.ranges ? p.ranges[2 * f] : 0;
  const int64_t count = p.ranges ? p.ranges[2 * f + 1] : p.tokens;
  const uint8_t* mask =
      p.token_mask ? p.token_mask + b * p.mask_stride_batch + f * p.mask_stride_frame : nullptr;
  int64_t kept = 0;
  for (int64_t m = 0; m < count; ++m) {
    const int32_t token = start + static_cast<int32_t>(m);
    if (mask == nullptr || mask[token]) tokens[kept++] = token;
  }
  return kept;
}

template <class T>
inline void prepare(const AudioCrossAttentionParams& p, int64_t b, int64_t f, int64_t head,
                    const Work& w) {
  const T* k =
      static_cast<const T*>(p.k) + b * p.k_stride_batch + f * p.k_stride_frame + head * p.head_dim;
  const T* v =
      static_cast<const T*>(p.v) + b * p.v_stride_batch + f * p.v_stride_frame + head * p.head_dim;
  for (int64_t m = 0; m < w.count; m += kLanes) {
    const T* rows[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      rows[j] = k + w.tokens[smaller(m + j, w.count - 1)] * p.k_stride_row;
    }
    transpose_in(rows, smaller(kLanes, w.count - m), w.head_dim, w.keys + m * w.head_dim);
  }
  for (int64_t m = 0; m < w.count; ++m) {
    convert(v + w.tokens[m] * p.v_stride_row, w.head_dim, w.values + m * w.width);
  }
}

// Scores of kRows queries and kVectors * kLanes keys: scores[row * stride + key].
template <int kVectors>
inline void score(const float* queries, const float* keys, int64_t head_dim, f32v scale,
                  float* scores, int64_t stride) {
  f32v sums[kVectors][kRows] = {};
  const float* rows[kRows];
  for (int j = 0; j < kRows; ++j) rows[j] = queries + j * head_dim;
  for (int64_t i = 0; i < head_dim; ++i) {
    f32v key[kVectors];
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) key[n] = load(keys + (n * head_dim + i) * kLanes);
#pragma GCC unroll 8
    for (int j = 0; j < kRows; ++j) {
      const f32v q = splat(rows[j][i]);
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) sums[n][j] = vfma(q, key[n], sums[n][j]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kRows; ++j) {
    for (int n = 0; n < kVectors; ++n) store(scores + j * stride + n * kLanes, sums[n][j] * scale);
  }
}

// Scores to exp(score - maximum) in place, for kLanes queries; returns their gate / sum.
inline f32v exponentials(float* scores, int64_t count, float gate) {
  f32v largest = load(scores);
  for (int64_t m = 1; m < count; ++m) {
    const f32v s = load(scores + m * kBlock);
    largest = s > largest ? s : largest;
  }
  f32v sum{};
  for (int64_t m = 0; m < count; ++m) {
    const f32v e = vexp(load(scores + m * kBlock) - largest);
    store(scores + m * kBlock, e);
    sum += e;
  }
  return gate / sum;
}

// Weighted sums of the values for kRows queries and two vectors of channels.
inline void mix(const float* probabilities, const float* values, int64_t count, int64_t width,
                f32v (&first)[kRows], f32v (&second)[kRows]) {
  for (int64_t m = 0; m < count; ++m) {
    const f32v v0 = load(values + m * width), v1 = load(values + m * width + kLanes);
#pragma GCC unroll 8
    for (int j = 0; j < kRows; ++j) {
      const f32v p = splat(probabilities[m * kBlock + j]);
      first[j] = vfma(p, v0, first[j]);
      second[j] = vfma(p, v1, second[j]);
    }
  }
}

// Attention of n <= kBlock queries. Missing queries repeat the last one and are not stored.
template <class T>
inline void attend(const Work& w, const T* q, int64_t q_stride, const float* row_scales,
                   const float* norm_weight, float gate, T* out, int64_t out_stride, int64_t n) {
  const f32v scale = splat(1.0f / __builtin_sqrtf(static_cast<float>(w.head_dim)));
  const int64_t padded = rounded_up(w.count, kLanes);
  for (int64_t row = 0; row < rounded_up(n, kRows); row += kRows) {
    for (int j = 0; j < kRows; ++j) {
      const int64_t r = smaller(row + j, n - 1);
      float* to = w.queries + j * w.head_dim;
      convert(q + r * q_stride, w.head_dim, to);
      if (norm_weight) normalize(to, row_scales[r], norm_weight, w.head_dim);
    }
    float* scores = w.scores + row * padded;
    int64_t m = 0;
    for (; m + 2 * kLanes <= padded; m += 2 * kLanes) {
      score<2>(w.queries, w.keys + m * w.head_dim, w.head_dim, scale, scores + m, padded);
    }
    if (m < padded) {
      score<1>(w.queries, w.keys + m * w.head_dim, w.head_dim, scale, scores + m, padded);
    }
  }
  const float* rows[kBlock];
  for (int j = 0; j < kBlock; ++j) rows[j] = w.scores + smaller(j, n - 1) * padded;
  transpose_in(rows, kBlock, w.count, w.probabilities);
  alignas(64) float factors[kBlock];
  store(factors, exponentials(w.probabilities, w.count, gate));
  store(factors + kLanes, exponentials(w.probabilities + kLanes, w.count, gate));
  for (int64_t row = 0; row < n; row += kRows) {
    for (int64_t i = 0; i < w.head_dim; i += 2 * kLanes) {
      f32v first[kRows] = {}, second[kRows] = {};
      mix(w.probabilities + row, w.values + i, w.count, w.width, first, second);
      for (int j = 0; j < kRows && row + j < n; ++j) {
        T* to = out + (row + j) * out_stride + i;
        const f32v factor = splat(factors[row + j]);
        store_part(to, first[j] * factor, w.head_dim - i);
        store_part(to + kLanes, second[j] * factor, w.head_dim - i - kLanes);
      }
    }
  }
}

template <class T>
inline void clear(T* out, int64_t out_stride, int64_t rows, int64_t n) {
  for (int64_t row = 0; row < rows; ++row)
    __builtin_memset(out + row * out_stride, 0, n * sizeof(T));
}

template <class T>
void items(const AudioCrossAttentionParams& p, int64_t begin, int64_t end, Work w) {
  const int64_t tiles = audio_tiles(p.patches);
  const int64_t model_width = p.num_heads * p.head_dim;
  int64_t scaled_tile = -1;  // whose row scales are in the scratch
  for (int64_t item = begin; item < end; ++item) {
    const int64_t head = item % p.num_heads, tile = item / p.num_heads;
    const int64_t b = tile / tiles / p.frames, f = tile / tiles % p.frames;
    const int64_t first = tile % tiles * kAudioTile;
    const int64_t rows = smaller(kAudioTile, p.patches - first);
    const int64_t row = f * p.patches + first, channel = head * p.head_dim;
    const T* q = static_cast<const T*>(p.q) + b * p.q_stride_batch + row * p.q_stride_row;
    T* out = static_cast<T*>(p.out) + (b * p.frames * p.patches + row) * model_width + channel;
    w.count = attended_tokens(p, b, f, w.tokens);
    if (w.count == 0) {
      clear(out, model_width, rows, p.head_dim);
      continue;
    }
    if (p.norm_weight && tile != scaled_tile) {
      for (int64_t r = 0; r < rows; ++r) {
        const float sum = sum_of_squares(q + r * p.q_stride_row, model_width);
        w.row_scales[r] = 1.0f / __builtin_sqrtf(sum / static_cast<float>(model_width) + p.eps);
      }
      scaled_tile = tile;
    }
    prepare<T>(p, b, f, head, w);
    const float* norm_weight = p.norm_weight ? p.norm_weight + channel : nullptr;
    const float gate = p.gate ? p.gate[b * p.frames + f] : 1.0f;
    for (int64_t r = 0; r < rows; r += kBlock) {
      attend(w, q + r * p.q_stride_row + channel, p.q_stride_row, w.row_scales + r, norm_weight,
             gate, out + r * model_width, model_width, smaller(kBlock, rows - r));
    }
  }
}

}  // namespace

void audio_cross_attention(const AudioCrossAttentionParams& p, int64_t begin, int64_t end,
                           float* scratch) {
  const int64_t keys = rounded_up(p.tokens, 32), width = rounded_up(p.head_dim, 32);
  Work w{};
  w.row_scales = scratch;
  w.keys = w.row_scales + kAudioTile;
  w.values = w.keys + keys * width;
  w.queries = w.values + keys * width;
  w.scores = w.queries + 8 * width;
  w.probabilities = w.scores + 32 * keys;
  w.tokens = reinterpret_cast<int32_t*>(w.probabilities + 32 * keys);
  w.head_dim = p.head_dim;
  w.width = width;
  if (p.dtype == DType::kFloat32) {
    items<float>(p, begin, end, w);
  } else {
    items<bf16>(p, begin, end, w);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
