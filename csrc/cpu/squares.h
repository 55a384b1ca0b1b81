// SPDX-License-Identifier: Apache-2.0
// The sum of squares of a row, for RMS norms of a whole width.
#pragma once

#include "simd.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

template <class T>
inline float sum_of_squares(const T* x, int64_t n) {
  constexpr int kSums = 16;  // partial sums of every build, so that all add in the same order
  constexpr int kVectors = kSums / kLanes;
  f32v sums[kVectors] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int j = 0; j < kVectors; ++j) {
      const f32v v = load(x + i + j * kLanes);
      sums[j] += v * v;
    }
  }
  alignas(64) float s[kSums];
  for (int j = 0; j < kVectors; ++j) store(s + j * kLanes, sums[j]);
  for (int j = 0; i < n; ++i, ++j) s[j] += load1(x + i) * load1(x + i);
  for (int width = kSums / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) s[j] += s[j + width];
  }
  return s[0];
}

}  // namespace
}  // namespace skyreels_rt::SKYREELS_RT_ISA
