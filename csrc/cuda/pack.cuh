// SPDX-License-Identifier: Apache-2.0
// Loads and stores of kPack neighbours at once, and conversions to and from fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

namespace skyreels_rt {

template <class T, int kPack>
struct alignas(sizeof(T) * kPack) Pack {
  T values[kPack];
};

// Elements of one 16-byte access.
template <class T>
constexpr int kWide = static_cast<int>(16 / sizeof(T));

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

template <class T, int kPack>
__device__ inline Pack<T, kPack> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, kPack>*>(p);
}

// fp32 neighbours, 16 bytes at a time.
template <int kPack>
__device__ inline void load_floats(const float* p, float (&to)[kPack]) {
  constexpr int kPart = kPack < 4 ? kPack : 4;
#pragma unroll
  for (int i = 0; i < kPack; i += kPart) {
    const auto part = load_pack<float, kPart>(p + i);
#pragma unroll
    for (int j = 0; j < kPart; ++j) to[i + j] = part.values[j];
  }
}

template <int kPack>
__device__ inline void store_floats(float* p, const float (&from)[kPack]) {
  constexpr int kPart = kPack < 4 ? kPack : 4;
#pragma unroll
  for (int i = 0; i < kPack; i += kPart) {
    Pack<float, kPart> part;
#pragma unroll
    for (int j = 0; j < kPart; ++j) part.values[j] = from[i + j];
    *reinterpret_cast<Pack<float, kPart>*>(p + i) = part;
  }
}

inline bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace skyreels_rt
