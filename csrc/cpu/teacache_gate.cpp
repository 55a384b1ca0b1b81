// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/teacache_gate.h"

#include "simd.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

constexpr int kSums = 16;         // partial sums of every build, so that all add in the same order
constexpr int64_t kBlock = 4096;  // elements that are added in fp32

inline f32v magnitude(f32v v) { return (f32v)((u32v)v & 0x7fffffffu); }

inline double total(const float* s) {
  float t[kSums];
  for (int j = 0; j < kSums; ++j) t[j] = s[j];
  for (int width = kSums / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) t[j] += t[j + width];
  }
  return static_cast<double>(t[0]);
}

// Adds the two sums of n <= kBlock elements to sums[0] and sums[1].
template <class T>
inline void add_block(const T* signal, const T* previous, int64_t n, double* sums) {
  constexpr int kVectors = kSums / kLanes;
  f32v change[kVectors] = {}, size[kVectors] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int j = 0; j < kVectors; ++j) {
      const f32v before = load(previous + i + j * kLanes);
      change[j] += magnitude(load(signal + i + j * kLanes) - before);
      size[j] += magnitude(before);
    }
  }
  alignas(64) float c[kSums], s[kSums];
  for (int j = 0; j < kVectors; ++j) {
    store(c + j * kLanes, change[j]);
    store(s + j * kLanes, size[j]);
  }
  for (int j = 0; i < n; ++i, ++j) {
    const float before = load1(previous + i);
    c[j] += __builtin_fabsf(load1(signal + i) - before);
    s[j] += __builtin_fabsf(before);
  }
  sums[0] += total(c);
  sums[1] += total(s);
}

template <class T>
void run(const TeacacheGateParams& p, int64_t begin, int64_t end, double* sums) {
  const T* signal = static_cast<const T*>(p.signal);
  const T* previous = static_cast<const T*>(p.previous);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t left = p.count - chunk * kChunk;
    const int64_t stop = chunk * kChunk + (left < kChunk ? left : kChunk);
    double* pair = sums + 2 * chunk;
    pair[0] = pair[1] = 0.0;
    for (int64_t i = chunk * kChunk; i < stop; i += kBlock) {
      add_block(signal + i, previous + i, stop - i < kBlock ? stop - i : kBlock, pair);
    }
  }
}

}  // namespace

void teacache_gate(const TeacacheGateParams& p, int64_t begin, int64_t end, double* sums) {
  if (p.dtype == DType::kFloat32) {
    run<float>(p, begin, end, sums);
  } else {
    run<bf16>(p, begin, end, sums);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
