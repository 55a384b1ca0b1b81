// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/qk_norm_rope.h"

#include "simd.h"
#include "squares.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

// cos and signed sin of one position, each value twice: y = n * cos2 + swap_pairs(n) * sin2.
inline void spread_angles(const float* cos, const float* sin, int64_t head_dim, float* cos2,
                          float* sin2) {
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    cos2[2 * i] = cos2[2 * i + 1] = cos[i];
    sin2[2 * i] = -sin[i];
    sin2[2 * i + 1] = sin[i];
  }
}

template <class T>
inline void norm_rotate(T* x, const float* weight, const float* cos2, const float* sin2,
                        int64_t num_heads, int64_t head_dim, float eps) {
  const int64_t width = num_heads * head_dim;
  const float mean = sum_of_squares(x, width) / static_cast<float>(width);
  const float scale = 1.0f / __builtin_sqrtf(mean + eps);
  for (int64_t head = 0; head < num_heads; ++head, x += head_dim, weight += head_dim) {
    int64_t i = 0;
    for (; i + kLanes <= head_dim; i += kLanes) {
      const f32v n = load(x + i) * scale * load(weight + i);
      store(x + i, n * load(cos2 + i) + swap_pairs(n) * load(sin2 + i));
    }
    for (; i < head_dim; i += 2) {
      const float n0 = load1(x + i) * scale * weight[i];
      const float n1 = load1(x + i + 1) * scale * weight[i + 1];
      store1(x + i, n0 * cos2[i] + n1 * sin2[i]);
      store1(x + i + 1, n1 * cos2[i + 1] + n0 * sin2[i + 1]);
    }
  }
}

template <class T>
void rows(const QkNormRopeParams& p, int64_t begin, int64_t end, float* scratch) {
  float* cos2 = scratch;
  float* sin2 = scratch + p.head_dim;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / p.length;
    const int64_t l = row % p.length;
    const int64_t half = p.head_dim / 2;
    spread_angles(p.cos + l * half, p.sin + l * half, p.head_dim, cos2, sin2);
    T* q = static_cast<T*>(p.q) + b * p.q_stride_batch + l * p.q_stride_row;
    T* k = static_cast<T*>(p.k) + b * p.k_stride_batch + l * p.k_stride_row;
    norm_rotate(q, p.weight_q, cos2, sin2, p.num_heads, p.head_dim, p.eps);
    norm_rotate(k, p.weight_k, cos2, sin2, p.num_heads, p.head_dim, p.eps);
  }
}

}  // namespace

void qk_norm_rope(const QkNormRopeParams& p, int64_t begin, int64_t end, float* scratch) {
  if (p.dtype == DType::kFloat32) {
    rows<float>(p, begin, end, scratch);
  } else {
    rows<bf16>(p, begin, end, scratch);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
