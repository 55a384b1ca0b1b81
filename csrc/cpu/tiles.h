// SPDX-License-Identifier: Apache-2.0
// Transposed tiles: a lane stands for a row, so that reductions along rows need no shuffles and
// add in the same order in every build.
#pragma once

#include "simd.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

typedef float f32x4 __attribute__((vector_size(16)));
typedef uint16_t u16x4 __attribute__((vector_size(8)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));

inline f32x4 load4(const float* p) { return load_raw<f32x4>(p); }
inline f32x4 load4(const bf16* p) {
  return (f32x4)(__builtin_convertvector(load_raw<u16x4>(p), u32x4) << 16);
}

inline void store4(float* p, f32x4 v) { store_raw(p, v); }
inline void store4(bf16* p, f32x4 v) {
  const u32x4 u = (u32x4)v;
  const u32x4 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const u32x4 bits = v != v ? (u32x4){} + 0x7fc0u : rounded;
  store_raw(p, __builtin_convertvector(bits, u16x4));
}

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
#define SKYREELS_RT_SHUFFLE4(a, b, ...) __builtin_shuffle(a, b, (u32x4){__VA_ARGS__})
#else
#define SKYREELS_RT_SHUFFLE4(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif

inline void transpose4(f32x4& a, f32x4& b, f32x4& c, f32x4& d) {
  const f32x4 ab_low = SKYREELS_RT_SHUFFLE4(a, b, 0, 4, 1, 5);
  const f32x4 ab_high = SKYREELS_RT_SHUFFLE4(a, b, 2, 6, 3, 7);
  const f32x4 cd_low = SKYREELS_RT_SHUFFLE4(c, d, 0, 4, 1, 5);
  const f32x4 cd_high = SKYREELS_RT_SHUFFLE4(c, d, 2, 6, 3, 7);
  a = SKYREELS_RT_SHUFFLE4(ab_low, cd_low, 0, 1, 4, 5);
  b = SKYREELS_RT_SHUFFLE4(ab_low, cd_low, 2, 3, 6, 7);
  c = SKYREELS_RT_SHUFFLE4(ab_high, cd_high, 0, 1, 4, 5);
  d = SKYREELS_RT_SHUFFLE4(ab_high, cd_high, 2, 3, 6, 7);
}
#undef SKYREELS_RT_SHUFFLE4

// tile[i * kRows + r] = rows[r][i] for i < n and r < count, the latter rounded up to four.
template <int kRows, class T>
inline void transpose_in(const T* const (&rows)[kRows], int64_t count, int64_t n, float* tile) {
  static_assert(kRows % 4 == 0, "rows go four at a time");
  for (int64_t r = 0; r < count; r += 4) {
    const T *p0 = rows[r], *p1 = rows[r + 1], *p2 = rows[r + 2], *p3 = rows[r + 3];
    float* to = tile + r;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
      f32x4 a = load4(p0 + i), b = load4(p1 + i), c = load4(p2 + i), d = load4(p3 + i);
      transpose4(a, b, c, d);
      store_raw(to + i * kRows, a);
      store_raw(to + (i + 1) * kRows, b);
      store_raw(to + (i + 2) * kRows, c);
      store_raw(to + (i + 3) * kRows, d);
    }
    for (; i < n; ++i) {
      to[i * kRows] = load1(p0 + i);
      to[i * kRows + 1] = load1(p1 + i);
      to[i * kRows + 2] = load1(p2 + i);
      to[i * kRows + 3] = load1(p3 + i);
    }
  }
}

// rows[r][i] = tile[i * kRows + r] for i < n and r < count.
template <int kRows, class T>
inline void transpose_out(const float* tile, int64_t count, int64_t n, T* const (&rows)[kRows]) {
  static_assert(kRows % 4 == 0, "rows go four at a time");
  int64_t r = 0;
  for (; r + 4 <= count && r < kRows; r += 4) {
    const float* from = tile + r;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
      f32x4 a = load4(from + i * kRows), b = load4(from + (i + 1) * kRows);
      f32x4 c = load4(from + (i + 2) * kRows), d = load4(from + (i + 3) * kRows);
      transpose4(a, b, c, d);
      store4(rows[r] + i, a);
      store4(rows[r + 1] + i, b);
      store4(rows[r + 2] + i, c);
      store4(rows[r + 3] + i, d);
    }
    for (; i < n; ++i) {
      for (int j = 0; j < 4; ++j) store1(rows[r + j] + i, from[i * kRows + j]);
    }
  }
  for (; r < count && r < kRows; ++r) {
    for (int64_t i = 0; i < n; ++i) store1(rows[r] + i, tile[i * kRows + r]);
  }
}

}  // namespace
}  // namespace skyreels_rt::SKYREELS_RT_ISA
