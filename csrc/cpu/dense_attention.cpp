// SPDX-License-Identifier: Apache-2.0
// Tiles of queries meet blocks of keys; maxima and sums are carried along and what was summed
// before is rescaled where a maximum grows (online softmax). Everything is transposed: a lane
// stands for a query, so neither maxima nor sums cross the lanes.
#include "skyreels_rt/dense_attention.h"

#include "products.h"
#include "tiles.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Scratch of one range of items. E: float or uint32_t.
template <class E>
struct Work {
  E* queries;      // groups of kColumns queries, each (depth, kColumns)
  float* outputs;  // groups of kColumns queries, each (width, kColumns)
  E* keys;         // (kKeyBlock, depth)
  E* values;       // groups of kGroupRows channels, each (keys or their pairs, kGroupRows)
  float* scores;   // (kKeyBlock, kColumns); then the weights in their place
  float* maxima;   // (tile)
  float* sums;     // (tile)
  int64_t depth;   // elements of a head
  int64_t width;   // channels, rounded up to kGroupRows
};

// 2^x for x <= 0, as good as 0 below -126; NaN stays NaN. The polynomial's error is 1.7e-7 with its
// roundings, and 2^0 is 1.
inline f32v exp2_of(f32v x) {
  constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: added, it leaves n in the low bits
  const f32v least = (f32v){} - 126.0f;
  x = vmax(least, x);  // x where it is NaN
  const f32v shifted = x + kToInteger;
  const f32v r = x - (shifted - kToInteger);
  f32v p = vfma(r, splat(1.32647261e-3f), splat(9.67151299e-3f));
  p = vfma(p, r, splat(5.55073358e-2f));
  p = vfma(p, r, splat(2.40222424e-1f));
  p = vfma(p, r, splat(6.93147004e-1f));
  p = vfma(p, r, splat(1.0f));
  return p * (f32v)(((u32v)shifted << 23) + (127u << 23));
}

// Queries of a group, transposed; those missing are zero.
template <class T, class E>
inline void take_queries(const T* q, int64_t row_stride, int64_t count, int64_t head_dim,
                         const Work<E>& w, E* to) {
  E* rows = reinterpret_cast<E*>(w.scores);
  const float* starts[kColumns];
  for (int r = 0; r < kColumns; ++r) {
    E* row = rows + r * w.depth;
    if (r < count) {
      copy_row(q + r * row_stride, head_dim, row);
    } else {
      __builtin_memset(row, 0, w.depth * sizeof(E));
    }
    starts[r] = reinterpret_cast<const float*>(row);  // moved only, whatever the bits mean
  }
  transpose_in(starts, kColumns, w.depth, reinterpret_cast<float*>(to));
}

// Keys of a block, and zeros up to whole groups of rows.
template <class T, class E>
inline void take_keys(const T* k, int64_t row_stride, int64_t count, int64_t head_dim,
                      const Work<E>& w) {
  for (int64_t m = 0; m < count; ++m) copy_row(k + m * row_stride, head_dim, w.keys + m * w.depth);
  const int64_t missing = rounded_up(count, kGroupRows) - count;
  __builtin_memset(w.keys + count * w.depth, 0, missing * w.depth * sizeof(E));
}

// Values of a block, channels in groups; channels missing in the last are zero.
inline void take_values(const float* v, int64_t row_stride, int64_t count, int64_t head_dim,
                        const Work<float>& w) {
  for (int64_t m = 0; m < count; ++m) {
    const float* row = v + m * row_stride;
    for (int64_t c = 0; c < w.width; c += kGroupRows) {
      float* to = w.values + c * count + m * kGroupRows;
      const int64_t n = smaller(kGroupRows, head_dim - c);
      if (n == kGroupRows) {
        __builtin_memcpy(to, row + c, kGroupRows * sizeof(float));
      } else {
        for (int64_t i = 0; i < kGroupRows; ++i) to[i] = i < n ? row[c + i] : 0.0f;
      }
    }
  }
}

// The same in pairs of keys; an odd last key gets a zero beside it.
inline void take_values(const bf16* v, int64_t row_stride, int64_t count, int64_t head_dim,
                        const Work<uint32_t>& w) {
  const int64_t pairs = (count + 1) / 2;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const bf16* even = v + 2 * pair * row_stride;
    const bf16* odd = 2 * pair + 1 < count ? even + row_stride : nullptr;
    for (int64_t c = 0; c < w.width; c += kGroupRows) {
      uint32_t* to = w.values + c * pairs + pair * kGroupRows;
      for (int64_t i = 0; i < kGroupRows; ++i) {
        const bool inside = c + i < head_dim;
        const uint32_t low = inside ? even[c + i].bits : 0;
        const uint32_t high = inside && odd ? odd[c + i].bits : 0;
        to[i] = low | high << 16;
      }
    }
  }
}

// Scores to weights, for kLanes queries and `count` keys; returns what the outputs of earlier
// blocks must be multiplied with. `scores` has a row of any numbers behind an odd last one.
template <class E>
inline f32v weigh(float* scores, int64_t count, f32v scale, float* maximum, float* sum) {
  f32v largest = load(scores);
  for (int64_t m = 1; m < count; ++m) {
    const f32v s = load(scores + m * kColumns);
    largest = vmax(s, largest);
  }
  largest = largest * scale;
  const f32v before = load(maximum);
  largest = vmax(largest, before);
  const f32v factor = exp2_of(before - largest);
  f32v total = load(sum) * factor;
  E* weights = reinterpret_cast<E*>(scores);
  for (int64_t m = 0; m < count; m += 2) {
    const f32v even = exp2_of(vfma(load(scores + m * kColumns), scale, -largest));
    f32v odd = exp2_of(vfma(load(scores + (m + 1) * kColumns), scale, -largest));
    if (m + 1 == count) odd = f32v{};
    total = total + even + odd;
    put_weights(weights, kColumns, m, even, odd);
  }
  store(maximum, largest);
  store(sum, total);
  return factor;
}

// One group of queries meets a block of keys.
template <class E>
inline void meet(const Work<E>& w, const E* queries, int64_t count, bool first, f32v scale,
                 float* outputs, float* maxima, float* sums) {
  for (int64_t m = 0; m < count; m += kGroupRows) {
    Product product;
    product.add(w.keys + m * w.depth, w.depth, 1, queries, w.depth);
    product.put(w.scores + m * kColumns);
  }
  f32v factors[kColumnVectors];
  for (int j = 0; j < kColumnVectors; ++j) {
    const int64_t lane = j * kLanes;
    factors[j] = weigh<E>(w.scores + lane, count, scale, maxima + lane, sums + lane);
  }
  const E* weights = reinterpret_cast<const E*>(w.scores);
  const int64_t depth = weights_of(weights, count);
  for (int64_t c = 0; c < w.width; c += kGroupRows) {
    Product product;
    if (!first) product.take(outputs + c * kColumns, factors);
    product.add(w.values + c * depth, 1, kGroupRows, weights, depth);
    product.put(outputs + c * kColumns);
  }
}

// Divides a group's outputs by the sums of its weights and writes `count` of them.
template <class T>
inline void finish(float* outputs, const float* sums, int64_t count, int64_t head_dim, T* out,
                   int64_t row_stride) {
  for (int j = 0; j < kColumns; j += kLanes) {
    const f32v inverse = 1.0f / load(sums + j);
    for (int64_t c = 0; c < head_dim; ++c) {
      float* at = outputs + c * kColumns + j;
      store(at, load(at) * inverse);
    }
  }
  T* rows[kColumns];
  for (int r = 0; r < kColumns; ++r) rows[r] = out + smaller(r, count - 1) * row_stride;
  transpose_out(outputs, count, head_dim, rows);
}

template <class T>
inline const T* head(const void* base, const HeadStrides& s, int64_t b, int64_t n, int64_t row) {
  return static_cast<const T*>(base) + b * s.batch + n * s.head + row * s.row;
}

// `count` queries from `first` on, of one head.
template <class T, class E>
void attend(const DenseAttentionParams& p, int64_t b, int64_t n, int64_t first, int64_t count,
            const Work<E>& w) {
  const f32v scale = splat(1.44269504f / __builtin_sqrtf(static_cast<float>(p.head_dim)));
  const int64_t groups = rounded_up(count, kColumns);
  for (int64_t g = 0; g < groups; g += kColumns) {
    const T* q = head<T>(p.q, p.q_strides, b, n, first + g);
    take_queries(q, p.q_strides.row, smaller(kColumns, count - g), p.head_dim, w,
                 w.queries + g * w.depth);
  }
  for (int64_t r = 0; r < groups; ++r) {
    w.maxima[r] = -__builtin_inff();
    w.sums[r] = 0.0f;
  }
  for (int64_t key = 0; key < p.keys; key += kKeyBlock) {
    const int64_t keys = smaller(kKeyBlock, p.keys - key);
    take_keys(head<T>(p.k, p.k_strides, b, n, key), p.k_strides.row, keys, p.head_dim, w);
    take_values(head<T>(p.v, p.v_strides, b, n, key), p.v_strides.row, keys, p.head_dim, w);
    for (int64_t g = 0; g < groups; g += kColumns) {
      meet(w, w.queries + g * w.depth, keys, key == 0, scale, w.outputs + g * w.width, w.maxima + g,
           w.sums + g);
    }
  }
  for (int64_t g = 0; g < groups; g += kColumns) {
    T* out = const_cast<T*>(head<T>(p.out, p.out_strides, b, n, first + g));
    finish(w.outputs + g * w.width, w.sums + g, smaller(kColumns, count - g), p.head_dim, out,
           p.out_strides.row);
  }
  if (p.maxima) {
    const int64_t at = (b * p.heads + n) * p.queries + first;
    __builtin_memcpy(p.maxima + at, w.maxima, count * sizeof(float));
    __builtin_memcpy(p.exponentials + at, w.sums, count * sizeof(float));
  }
}

template <class T>
void items(const DenseAttentionParams& p, int64_t tile, int64_t begin, int64_t end,
           float* scratch) {
  using E = typename ElementOf<T>::Type;
  Work<E> w;
  w.depth = elements(static_cast<const T*>(nullptr), p.head_dim);
  w.width = rounded_up(p.head_dim, kGroupRows);
  const int64_t longest = w.width > kKeyBlock ? w.width : kKeyBlock;
  w.scores = scratch;
  w.outputs = w.scores + longest * kColumns;
  w.maxima = w.outputs + w.width * tile;
  w.sums = w.maxima + tile;
  w.queries = reinterpret_cast<E*>(w.sums + tile);
  w.keys = w.queries + w.depth * tile;
  w.values = w.keys + w.depth * kKeyBlock;
  const int64_t tiles = query_tiles(p, tile);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t pair = item / tiles, first = item % tiles * tile;
    attend<T>(p, pair / p.heads, pair % p.heads, first, smaller(tile, p.queries - first), w);
  }
}

}  // namespace

void dense_attention(const DenseAttentionParams& p, int64_t tile, int64_t begin, int64_t end,
                     float* scratch) {
  if (p.dtype == DType::kFloat32) {
    items<float>(p, tile, begin, end, scratch);
  } else {
    items<bf16>(p, tile, begin, end, scratch);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
