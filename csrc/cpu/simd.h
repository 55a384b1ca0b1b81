// SPDX-License-Identifier: Apache-2.0
// Vectors of the width of the instruction set that this file is compiled for.
//
// Included by csrc/cpu/<op>.cpp only, inside one build per instruction set. Everything here is in
// an unnamed namespace and nothing comes from the standard library's templates: an inline function
// shared between the builds could be linked in its AVX-512 form into the plain one.
#pragma once

#include <cstdint>

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
  return (f32v)(__builtin_convertvector(load_raw<u16v>(p), u32v) << 16);
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
  const u32v is_nan = (u32v)(v != v);
  const u32v bits = (rounded & ~is_nan) | (is_nan & 0x7fc0u);
  store_raw(p, __builtin_convertvector(bits, u16v));
}

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

}  // namespace
}  // namespace skyreels_rt::SKYREELS_RT_ISA
