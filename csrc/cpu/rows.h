// SPDX-License-Identifier: Apache-2.0
// Reductions over rows and LayerNorm of a few rows at once, shared by the norm operators.
//
// kRows rows go side by side: their sums do not wait for one another, and each vector of weights is
// loaded once for all of them. A row's result does not depend on its neighbours.
#pragma once

#include "simd.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

constexpr int kSums = 16;  // partial sums of every build, so that all add in the same order
constexpr int kParts = kSums / kLanes;
constexpr int kRows = 4;

struct Sums {
  f32v parts[kParts] = {};

  float total() const {
    alignas(64) float s[kSums];
    for (int j = 0; j < kParts; ++j) store(s + j * kLanes, parts[j]);
    for (int width = kSums / 2; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) s[j] += s[j + width];
    }
    return s[0];
  }
};

// Calls fn(i, part, n) for every vector i .. i + n of a row of `size`; part counts partial sums.
template <class Fn>
inline void for_each_vector(int64_t size, const Fn& fn) {
  int64_t i = 0;
  for (; i + kSums <= size; i += kSums) {
    for (int j = 0; j < kParts; ++j) fn(i + j * kLanes, j, static_cast<int64_t>(kLanes));
  }
  for (int j = 0; j < kParts; ++j, i += kLanes) {
    if (i < size) fn(i, j, size - i);
  }
}

// Mean and 1 / sqrt(variance + eps) of R rows, given their sums.
template <int R, class T>
inline void moments(const T* const (&x)[R], const Sums (&sums)[R], int64_t size, float eps,
                    float (&mean)[R], float (&scale)[R]) {
  Sums squares[R];
  f32v center[R];
  const float inverse = 1.0f / static_cast<float>(size);
  for (int r = 0; r < R; ++r) {
    mean[r] = sums[r].total() * inverse;
    center[r] = splat(mean[r]);
  }
  for_each_vector(size, [&](int64_t i, int part, int64_t n) {
    for (int r = 0; r < R; ++r) {
      const f32v d = load_part(x[r] + i, n, mean[r]) - center[r];
      squares[r].parts[part] += d * d;
    }
  });
  for (int r = 0; r < R; ++r) {
    scale[r] = 1.0f / __builtin_sqrtf(squares[r].total() * inverse + eps);
  }
}

// y = (x - mean) * scale * weight + bias for R rows.
template <int R, class In, class Out>
inline void affine(const In* const (&x)[R], const float (&mean)[R], const float (&scale)[R],
                   const float* weight, const float* bias, int64_t size, Out* const (&y)[R]) {
  f32v center[R], spread[R];
  for (int r = 0; r < R; ++r) {
    center[r] = splat(mean[r]);
    spread[r] = splat(scale[r]);
  }
  for_each_vector(size, [&](int64_t i, int, int64_t n) {
    const f32v w = load_part(weight + i, n, 0.0f);
    const f32v b = load_part(bias + i, n, 0.0f);
    for (int r = 0; r < R; ++r) {
      store_part(y[r] + i, (load_part(x[r] + i, n, 0.0f) - center[r]) * spread[r] * w + b, n);
    }
  });
}

inline const float* segment_row(const SegmentTable& table, int64_t batch, int64_t token) {
  return table.data + batch * table.stride_batch + token / table.tokens * table.stride_segment;
}

// Tokens from `token` to the end of its segment.
inline int64_t segment_left(const SegmentTable& table, int64_t token) {
  return table.tokens - token % table.tokens;
}

inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
}  // namespace skyreels_rt::SKYREELS_RT_ISA
