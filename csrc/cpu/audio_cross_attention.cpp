// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/audio_cross_attention.h"

#include "elements.h"
#include "squares.h"
#include "tiles.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

constexpr int kBlock = 2 * kLanes;           // queries whose softmax is computed together
constexpr int kRows = kLanes == 16 ? 8 : 4;  // queries: kRows x 2 accumulators fit the registers

// Scratch of one range of items, and what it holds for the current frame and head.
template <class E>
struct Work {
  float* row_scales;     // (kAudioTile): of the tile's queries
  E* keys;               // groups of kLanes keys, each (depth, kLanes)
  E* values;             // (count or its pairs, width)
  E* queries;            // (kRows, depth)
  float* normed;         // (head_dim): of one query
  float* scores;         // (kBlock, padded count)
  float* probabilities;  // (count, kBlock), then as elements
  int32_t* tokens;       // (count): the tokens attended
  int64_t count, head_dim, depth, width;
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

// Keys of a frame and head, transposed; missing ones repeat the last.
template <class T, class E>
inline void prepare_keys(const T* k, int64_t row_stride, const Work<E>& w) {
  for (int64_t m = 0; m < w.count; m += 4) {
    const float* rows[kLanes];
    for (int j = 0; j < 4; ++j) {
      E* row = w.queries + j * w.depth;
      copy_row(k + w.tokens[smaller(m + j, w.count - 1)] * row_stride, w.head_dim, row);
      rows[j] = reinterpret_cast<const float*>(row);  // moved only, whatever the bits mean
    }
    const int64_t group = m / kLanes * kLanes;
    transpose_in(rows, 4, w.depth,
                 reinterpret_cast<float*>(w.keys + group * w.depth + (m - group)));
  }
}

inline void prepare_values(const float* v, int64_t row_stride, const Work<float>& w) {
  for (int64_t m = 0; m < w.count; ++m) {
    copy_row(v + w.tokens[m] * row_stride, w.head_dim, w.values + m * w.width);
  }
}

// Pairs of tokens; an odd last one gets a zero beside it.
inline void prepare_values(const bf16* v, int64_t row_stride, const Work<uint32_t>& w) {
  for (int64_t m = 0; m < w.count; m += 2) {
    const bf16* even = v + w.tokens[m] * row_stride;
    const bf16* odd = m + 1 < w.count ? v + w.tokens[m + 1] * row_stride : nullptr;
    uint32_t* to = w.values + m / 2 * w.width;
    for (int64_t c = 0; c < w.head_dim; ++c) {
      to[c] = even[c].bits | static_cast<uint32_t>(odd ? odd[c].bits : 0) << 16;
    }
  }
}

// Queries of the next call and outputs of this one, brought into the cache line by line beside the
// arithmetic: rows of one head lie too far apart for the processor to see what comes next.
struct Ahead {
  const char* q;
  char* out;
  int64_t q_stride, out_stride;  // bytes
  int64_t lines;                 // of kRows rows of one head; 0 for nothing

  inline void fetch(int64_t i) const {
    const int64_t row = i % kRows, at = i / kRows * 64;
    if (i < lines) {
      __builtin_prefetch(q + row * q_stride + at);
      __builtin_prefetch(out + row * out_stride + at, 1);
    }
  }
};

// Scores of kRows queries and kVectors * kLanes keys: scores[row * stride + key].
template <int kVectors, class E>
inline void score(const E* const (&rows)[kRows], const E* keys, int64_t depth, f32v scale,
                  float* scores, int64_t stride, const Ahead& ahead) {
  f32v sums[kVectors][kRows] = {};
  for (int64_t i = 0; i < depth; ++i) {
    ahead.fetch(i);
    decltype(load_elements(keys)) key[kVectors];
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) key[n] = load_elements(keys + (n * depth + i) * kLanes);
#pragma GCC unroll 8
    for (int j = 0; j < kRows; ++j) {
      const auto q = repeat(load_raw<E>(rows[j] + i));
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) sums[n][j] = multiply_add(q, key[n], sums[n][j]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kRows; ++j) {
    for (int n = 0; n < kVectors; ++n) store(scores + j * stride + n * kLanes, sums[n][j] * scale);
  }
}

// Scores to exp(score - maximum) in place, for kLanes queries; returns their gate / sum. There is a
// row of any numbers behind an odd last one.
template <class E>
inline f32v exponentials(float* scores, int64_t count, float gate) {
  f32v largest = load(scores);
  for (int64_t m = 1; m < count; ++m) largest = vmax(load(scores + m * kBlock), largest);
  f32v sum{};
  for (int64_t m = 0; m < count; m += 2) {
    const f32v even = vexp(load(scores + m * kBlock) - largest);
    f32v odd = vexp(load(scores + (m + 1) * kBlock) - largest);
    if (m + 1 == count) odd = f32v{};
    sum = sum + even + odd;
    put_weights(reinterpret_cast<E*>(scores), kBlock, m, even, odd);
  }
  return gate / sum;
}

// Weighted sums of the values for kRows queries and two vectors of channels.
template <class E>
inline void mix(const E* probabilities, const E* values, int64_t depth, int64_t width,
                f32v (&first)[kRows], f32v (&second)[kRows]) {
#pragma GCC unroll 8
  for (int j = 0; j < kRows; ++j) first[j] = second[j] = f32v{};  // GCC clears `= {}` in memory
  for (int64_t m = 0; m < depth; ++m) {
    const auto v0 = load_elements(values + m * width);
    const auto v1 = load_elements(values + m * width + kLanes);
#pragma GCC unroll 8
    for (int j = 0; j < kRows; ++j) {
      const auto p = repeat(probabilities[m * kBlock + j]);
      first[j] = multiply_add(p, v0, first[j]);
      second[j] = multiply_add(p, v1, second[j]);
    }
  }
}

// A query by its norm, as elements.
inline void put_normed(const float* x, int64_t n, float* to) {
  __builtin_memcpy(to, x, n * sizeof(float));
}
inline void put_normed(const float* x, int64_t n, uint32_t* to) {
  bf16* rounded = reinterpret_cast<bf16*>(to);
  for (int64_t i = 0; i < n; ++i) store1(rounded + i, x[i]);
  if (n % 2) store1(rounded + n, 0.0f);
}

// Where the elements of a query are: with the caller, unless they must be normed or lack a pair.
template <class T, class E>
inline const E* query(const Work<E>& w, const T* q, float row_scale, const float* norm_weight,
                      int64_t slot) {
  if (norm_weight == nullptr && w.head_dim * sizeof(T) == w.depth * sizeof(E)) {
    return reinterpret_cast<const E*>(q);
  }
  E* to = w.queries + slot * w.depth;
  if (norm_weight == nullptr) {
    copy_row(q, w.head_dim, to);
    return to;
  }
  convert(q, w.head_dim, w.normed);
  normalize(w.normed, row_scale, norm_weight, w.head_dim);
  put_normed(w.normed, w.head_dim, to);
  return to;
}

// Where the tile goes on: rows left in it, and the same rows of the next head or null.
template <class T>
struct Rest {
  int64_t rows;
  const T* next_head;
};

// Attention of n <= kBlock queries. Missing queries repeat the last one and are not stored.
template <class T, class E>
inline void attend(const Work<E>& w, const T* q, int64_t q_stride, const float* row_scales,
                   const float* norm_weight, float gate, T* out, int64_t out_stride, int64_t n,
                   const Rest<T>& rest) {
  const f32v scale = splat(1.0f / __builtin_sqrtf(static_cast<float>(w.head_dim)));
  const int64_t padded = rounded_up(w.count, kLanes);
  const int64_t lines = (w.head_dim * static_cast<int64_t>(sizeof(T)) + 63) / 64 * kRows;
  for (int64_t row = 0; row < rounded_up(n, kRows); row += kRows) {
    const E* rows[kRows];
    for (int j = 0; j < kRows; ++j) {
      const int64_t r = smaller(row + j, n - 1);
      rows[j] = query(w, q + r * q_stride, row_scales[r], norm_weight, j);
    }
    const bool more = row + 2 * kRows <= rest.rows;
    const T* next = more ? q + (row + kRows) * q_stride : rest.next_head;
    Ahead ahead{
        reinterpret_cast<const char*>(next), reinterpret_cast<char*>(out + row * out_stride),
        q_stride * static_cast<int64_t>(sizeof(T)), out_stride * static_cast<int64_t>(sizeof(T)),
        next != nullptr && rest.rows >= kRows && row + kRows <= n ? lines : 0};
    float* scores = w.scores + row * padded;
    int64_t m = 0;
    for (; m + 2 * kLanes <= padded; m += 2 * kLanes) {
      score<2>(rows, w.keys + m * w.depth, w.depth, scale, scores + m, padded, ahead);
      ahead.lines = 0;
    }
    if (m < padded) {
      score<1>(rows, w.keys + m * w.depth, w.depth, scale, scores + m, padded, ahead);
    }
  }
  const float* rows[kBlock];
  for (int j = 0; j < kBlock; ++j) rows[j] = w.scores + smaller(j, n - 1) * padded;
  transpose_in(rows, kBlock, w.count, w.probabilities);
  alignas(64) float factors[kBlock];
  store(factors, exponentials<E>(w.probabilities, w.count, gate));
  store(factors + kLanes, exponentials<E>(w.probabilities + kLanes, w.count, gate));
  const E* probabilities = reinterpret_cast<const E*>(w.probabilities);
  const int64_t depth = weights_of(probabilities, w.count);
  for (int64_t row = 0; row < n; row += kRows) {
    for (int64_t i = 0; i < w.head_dim; i += 2 * kLanes) {
      f32v first[kRows], second[kRows];
      mix(probabilities + row, w.values + i, depth, w.width, first, second);
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
void items(const AudioCrossAttentionParams& p, int64_t begin, int64_t end, float* scratch) {
  using E = typename ElementOf<T>::Type;
  const int64_t keys = rounded_up(p.tokens, 32), width = rounded_up(p.head_dim, 32);
  Work<E> w{};
  w.row_scales = scratch;
  w.keys = reinterpret_cast<E*>(w.row_scales + kAudioTile);
  w.values = w.keys + keys * width;
  w.queries = w.values + keys * width;
  w.normed = reinterpret_cast<float*>(w.queries + 8 * width);
  w.scores = w.normed + width;
  w.probabilities = w.scores + 32 * keys;
  w.tokens = reinterpret_cast<int32_t*>(w.probabilities + 32 * keys);
  w.head_dim = p.head_dim;
  w.depth = elements(static_cast<const T*>(nullptr), p.head_dim);
  w.width = width;
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
    const int64_t of_k = b * p.k_stride_batch + f * p.k_stride_frame + channel;
    const int64_t of_v = b * p.v_stride_batch + f * p.v_stride_frame + channel;
    prepare_keys(static_cast<const T*>(p.k) + of_k, p.k_stride_row, w);
    prepare_values(static_cast<const T*>(p.v) + of_v, p.v_stride_row, w);
    const T* next_head = head + 1 < p.num_heads ? q + channel + p.head_dim : nullptr;
    const float* norm_weight = p.norm_weight ? p.norm_weight + channel : nullptr;
    const float gate = p.gate ? p.gate[b * p.frames + f] : 1.0f;
    for (int64_t r = 0; r < rows; r += kBlock) {
      attend(w, q + r * p.q_stride_row + channel, p.q_stride_row, w.row_scales + r, norm_weight,
             gate, out + r * model_width, model_width, smaller(kBlock, rows - r),
             Rest<T>{rows - r, next_head});
    }
  }
}

}  // namespace

void audio_cross_attention(const AudioCrossAttentionParams& p, int64_t begin, int64_t end,
                           float* scratch) {
  if (p.dtype == DType::kFloat32) {
    items<float>(p, begin, end, scratch);
  } else {
    items<bf16>(p, begin, end, scratch);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
