// SPDX-License-Identifier: Apache-2.0
// Vectors of the width of the instruction set that this file is compiled for.
//
// Included by csrc/cpu/<op>.cpp only, inside one build per instruction set. Everything here is in
// an unnamed namespace and nothing comes from the standard library's templates: an inline function
// shared between the builds could be linked in its AVX-512 form into the plain one.
#pragma once

#include <cstdint>

#if defined(__FMA__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if !defined(SKYREELS_RT_ISA)
#error "compile this file through CMakeLists.txt, which defines SKYREELS_RT_ISA"
#endif

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float f32v __attribute__((vector_size(4 * kLanes)));
typedef uint32_t u32v __attribute__((vector_size(4 * kLanes)));
typedef uint16_t u16v __attribute__((vector_size(2 * kLanes)));

struct bf16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_copy(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

template <class V, class T>
inline V load_raw(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
inline void store_raw(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

inline float load1(const float* p) { return *p; }
inline float load1(const bf16* p) { return bit_copy<float>(static_cast<uint32_t>(p->bits) << 16); }

inline f32v load(const float* p) { return load_raw<f32v>(p); }
inline f32v load(const bf16* p) {
#if defined(__AVX512F__)
  // GCC 12 makes two halves of the generic form, and warns about the unmasked intrinsic.
  return (f32v)((u32v)_mm512_maskz_cvtepu16_epi32(0xffff, load_raw<__m256i>(p)) << 16);
#else
  return (f32v)(__builtin_convertvector(load_raw<u16v>(p), u32v) << 16);
#endif
}

inline void store1(float* p, float v) { *p = v; }
inline void store1(bf16* p, float v) {
  const uint32_t u = bit_copy<uint32_t>(v);
  // Round to nearest even; a NaN must not be rounded up into an infinity.
  p->bits = static_cast<uint16_t>(v != v ? 0x7fc0u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

inline void store(float* p, f32v v) { store_raw(p, v); }
inline void store(bf16* p, f32v v) {
  const u32v u = (u32v)v;
  const u32v rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const u32v bits = v != v ? (u32v){} + 0x7fc0u : rounded;
  store_raw(p, __builtin_convertvector(bits, u16v));
}

// Not inlined, to keep the loops that end with them small.
template <class T>
[[gnu::noinline]] f32v load_tail(const T* p, int64_t n, float fill) {
  f32v v = (f32v){} + fill;
  for (int64_t i = 0; i < n; ++i) v[i] = load1(p + i);
  return v;
}

template <class T>
[[gnu::noinline]] void store_tail(T* p, f32v v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store1(p + i, v[i]);
}

// The first n values at p (all where n >= kLanes), then `fill`.
template <class T>
inline f32v load_part(const T* p, int64_t n, float fill) {
  return n >= kLanes ? load(p) : load_tail(p, n, fill);
}

// Writes the first n values of v (all where n >= kLanes).
template <class T>
inline void store_part(T* p, f32v v, int64_t n) {
  n >= kLanes ? store(p, v) : store_tail(p, v, n);
}

// e^x within 2 ulp from x = -86.5 on and 0 below (fp32 could go to -103); infinity where that is
// beyond fp32; NaN stays NaN.
// x = n ln 2 + r, a minimax polynomial for 2 e^r, and 2^(n-1), a normal number for every n.
inline f32v vexp(f32v x) {
  constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: added, it leaves n in the low bits
  const f32v most = (f32v){} + 89.0f;
  const f32v bounded = most < x ? most : x;
  const f32v shifted = bounded * 1.44269504f + kToInteger;
  const f32v n = shifted - kToInteger;
  const f32v r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  f32v p = r * 2.7629162e-3f + 1.67374504e-2f;
  p = p * r + 8.33367777e-2f;
  p = p * r + 3.33330411e-1f;
  p = p * r + 9.99999869e-1f;
  p = p * r + 2.0f;
  p = p * r + 2.0f;
  const f32v scale = (f32v)(((u32v)shifted << 23) + (126u << 23));
  return x < -86.5f ? (f32v){} : p * scale;
}

inline float vexp1(float x) { return vexp((f32v){} + x)[0]; }

// (x0, x1, x2, x3, ...) -> (x1, x0, x3, x2, ...)
inline f32v swap_pairs(f32v v) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
  // GCC 11 and older have no __builtin_shufflevector.
  u32v mask;
  for (int i = 0; i < kLanes; ++i) mask[i] = i ^ 1;
  return __builtin_shuffle(v, mask);
#else
#if defined(__AVX512F__)
  return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif defined(__AVX2__)
  return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
#else
  return __builtin_shufflevector(v, v, 1, 0, 3, 2);
#endif
#endif
}

inline f32v splat(float x) { return x - f32v{}; }  // exact, also for -0.0: a broadcast

// a > b ? a : b, which GCC makes a comparison and a selection of.
inline f32v vmax(f32v a, f32v b) {
#if defined(__AVX512F__)
  return (f32v)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (f32v)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// a * b + c with one rounding: one operation with the same bytes in every build.
inline f32v vfma(f32v a, f32v b, f32v c) {
#if defined(__FMA__) && defined(__AVX512F__)
  return (f32v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (f32v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  // The product is exact in double. Rounding the sum to odd there makes the second rounding right.
  typedef double f64v __attribute__((vector_size(8 * kLanes)));
  typedef int64_t i64v __attribute__((vector_size(8 * kLanes)));
  const f64v product = __builtin_convertvector(a, f64v) * __builtin_convertvector(b, f64v);
  const f64v addend = __builtin_convertvector(c, f64v);
  const f64v sum = product + addend;
  const f64v rest = sum - product;
  const f64v error = (product - (sum - rest)) + (addend - rest);
  const i64v inexact = (i64v)((error > 0.0) | (error < 0.0)) & (((i64v)sum & 1) - 1);
  const i64v outwards = (i64v)((error > 0.0) == (sum > 0.0));
  const i64v odd = (i64v)sum + (inexact & ((outwards & 2) - 1));
  return __builtin_convertvector((f64v)odd, f32v);
#endif
}

}  // namespace
}  // namespace skyreels_rt::SKYREELS_RT_ISA
