// SPDX-License-Identifier: Apache-2.0
// What the products of attention read: floats, or pairs of bf16 that meet in one step.
#pragma once

#include "bf16_pairs.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

// E: float for float, uint32_t for bf16.
template <class T>
struct ElementOf {
  using Type = float;
};
template <>
struct ElementOf<bf16> {
  using Type = uint32_t;
};
inline int64_t elements(const float*, int64_t n) { return n; }
inline int64_t elements(const bf16*, int64_t n) { return (n + 1) / 2; }
inline int64_t weights_of(const float*, int64_t keys) { return keys; }
inline int64_t weights_of(const uint32_t*, int64_t keys) { return (keys + 1) / 2; }

inline f32v multiply_add(f32v a, f32v b, f32v sum) { return vfma(a, b, sum); }

// Pairs of bf16, the odd one first. As VDPBF16PS, which also takes subnormal numbers for zero.
inline f32v multiply_add(u32v a, u32v b, f32v sum) {
#if defined(__AVX512BF16__)
  return (f32v)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  const f32v odd = vfma((f32v)(a & 0xffff0000u), (f32v)(b & 0xffff0000u), sum);
  return vfma((f32v)(a << 16), (f32v)(b << 16), odd);
#endif
}

inline f32v load_elements(const float* p) { return load_raw<f32v>(p); }
inline u32v load_elements(const uint32_t* p) { return load_raw<u32v>(p); }
inline f32v repeat(float x) { return splat(x); }
inline u32v repeat(uint32_t x) { return (u32v){} + x; }

// Copies a row of head_dim values; an odd last bf16 gets a zero beside it.
inline void copy_row(const float* from, int64_t head_dim, float* to) {
  __builtin_memcpy(to, from, head_dim * sizeof(float));
}
inline void copy_row(const bf16* from, int64_t head_dim, uint32_t* to) {
  if (head_dim % 2) to[head_dim / 2] = 0;
  __builtin_memcpy(to, from, head_dim * sizeof(bf16));
}

// Weights of keys m and m + 1, for kLanes queries, in rows of `stride` queries.
inline void put_weights(float* weights, int64_t stride, int64_t m, f32v even, f32v odd) {
  store(weights + m * stride, even);
  store(weights + (m + 1) * stride, odd);
}
inline void put_weights(uint32_t* pairs, int64_t stride, int64_t m, f32v even, f32v odd) {
  store_raw(pairs + m / 2 * stride, (round_upper(even) >> 16) | (round_upper(odd) & 0xffff0000u));
}

}  // namespace
}  // namespace skyreels_rt::SKYREELS_RT_ISA
