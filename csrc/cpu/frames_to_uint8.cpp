// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/frames_to_uint8.h"

#include "simd.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

constexpr float kRoundToEven = 12582912.0f;  // 1.5 * 2^23: the sum's low byte is the rounded value

typedef uint8_t u8x16 __attribute__((vector_size(16)));

inline uint32_t quantize1(float x) {
  float v = (x + 1.0f) * 127.5f;
  v = v > 0.0f ? v : 0.0f;  // false for NaN, which becomes 0
  v = v < 255.0f ? v : 255.0f;
  return bit_copy<uint32_t>(v + kRoundToEven) & 0xffu;
}

inline u32v quantize(f32v x) {
  f32v v = (x + 1.0f) * 127.5f;
  v = (f32v)((u32v)v & (u32v)(v > 0.0f));
  v = v < 255.0f ? v : (f32v){} + 255.0f;
  return (u32v)(v + kRoundToEven) & 0xffu;
}

// Writes kLanes pixels of 3 bytes from lanes 0x00bbggrr, and up to 4 bytes after them.
inline void store_pixels(uint8_t* dst, u32v pixels) {
#if defined(__SSSE3__)
  u8x16 parts[kLanes / 4];
  __builtin_memcpy(parts, &pixels, sizeof(parts));
  for (int j = 0; j < kLanes / 4; ++j) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
    const u8x16 order = {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15};
    store_raw(dst + 12 * j, __builtin_shuffle(parts[j], order));
#else
    store_raw(dst + 12 * j, __builtin_shufflevector(parts[j], parts[j], 0, 1, 2, 4, 5, 6, 8, 9, 10,
                                                    12, 13, 14, 15, 15, 15, 15));
#endif
  }
#else
  for (int j = 0; j < kLanes; ++j) store_raw(dst + 3 * j, static_cast<uint32_t>(pixels[j]));
#endif
}

// n pixels of one frame; never writes outside dst[0, 3 n).
template <class T>
inline void convert_run(const T* r, const T* g, const T* b, uint8_t* dst, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes + 2 <= n; i += kLanes) {
    const u32v pixels =
        quantize(load(r + i)) | quantize(load(g + i)) << 8 | quantize(load(b + i)) << 16;
    store_pixels(dst + 3 * i, pixels);
  }
  for (; i < n; ++i) {
    dst[3 * i] = static_cast<uint8_t>(quantize1(load1(r + i)));
    dst[3 * i + 1] = static_cast<uint8_t>(quantize1(load1(g + i)));
    dst[3 * i + 2] = static_cast<uint8_t>(quantize1(load1(b + i)));
  }
}

template <class T>
void convert(const FramesToUint8Params& p, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t frame = begin / p.plane;
    const int64_t offset = begin % p.plane;
    const int64_t left = p.plane - offset;
    const int64_t n = left < end - begin ? left : end - begin;
    const T* r = static_cast<const T*>(p.src) + frame * p.stride_frame + offset;
    convert_run(r, r + p.stride_channel, r + 2 * p.stride_channel, p.dst + 3 * begin, n);
    begin += n;
  }
}

}  // namespace

void frames_to_uint8(const FramesToUint8Params& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat32) {
    convert<float>(p, begin, end);
  } else {
    convert<bf16>(p, begin, end);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
