// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/blf_step.h"

#include "simd.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

inline void fetch(f32v& to, const float* p) { to = load(p); }
inline void fetch(f32v& to, const bf16* p) { to = load(p); }
inline void fetch(float& to, const float* p) { to = load1(p); }
inline void fetch(float& to, const bf16* p) { to = load1(p); }

// Number of windows that start before `frame`.
inline int64_t count_before(const int64_t* starts, int64_t n, int64_t frame) {
  int64_t low = 0;
  while (low < n) {
    const int64_t middle = low + (n - low) / 2;
    if (starts[middle] < frame) {
      low = middle + 1;
    } else {
      n = middle;
    }
  }
  return low;
}

// One latent of one channel: windows [first, last) cover it; `place` leads to its plane.
struct Row {
  int64_t frame, first, last, place;
};

// Share of window w, kCount vectors (or floats) from element i of the plane.
template <class T, class V, int kCount>
inline void window_share(const BlfStepParams& p, const Row& row, int64_t w, int64_t i, V* share) {
  constexpr int64_t kStep = sizeof(V) / sizeof(float);
  const int64_t within = row.frame - p.starts[w];
  const float weight = p.weights[w * p.window + within];
  const T* v = static_cast<const T*>(p.velocities[w]) + row.place + within * p.stride_frame + i;
  V x;
  for (int j = 0; j < kCount; ++j) {
    fetch(x, v + j * kStep);
    share[j] = x * p.guidance[0];
  }
  for (int64_t pass = 1; pass < p.num_passes; ++pass) {
    v += p.stride_pass;
    for (int j = 0; j < kCount; ++j) {
      fetch(x, v + j * kStep);
      share[j] = share[j] + x * p.guidance[pass];
    }
  }
  for (int j = 0; j < kCount; ++j) share[j] = share[j] * weight;
}

template <class T, class V, int kCount>
inline void step(const BlfStepParams& p, const Row& row, int64_t i, const float* latents,
                 float* out) {
  constexpr int64_t kStep = sizeof(V) / sizeof(float);
  V sum[kCount], share[kCount];
  window_share<T, V, kCount>(p, row, row.first, i, sum);
  for (int64_t w = row.first + 1; w < row.last; ++w) {
    window_share<T, V, kCount>(p, row, w, i, share);
    for (int j = 0; j < kCount; ++j) sum[j] = sum[j] + share[j];
  }
  for (int j = 0; j < kCount; ++j) {
    if (latents != nullptr) {
      V x;
      fetch(x, latents + i + j * kStep);
      sum[j] = x + sum[j] * p.delta;
    }
    store_raw(out + i + j * kStep, sum[j]);
  }
}

template <class T>
void run(const BlfStepParams& p, int64_t begin, int64_t end) {
  constexpr int kVectors = 4;
  while (begin < end) {
    const int64_t plane = begin / p.plane;
    const int64_t channel = plane / p.length;
    const int64_t frame = plane % p.length;
    int64_t i = begin - plane * p.plane;
    const int64_t left = end - plane * p.plane;
    const int64_t stop = left < p.plane ? left : p.plane;
    begin += stop - i;
    float* out = p.out + plane * p.plane;
    const float* latents = p.latents == nullptr ? nullptr
                                                : p.latents + channel * p.latents_stride_channel +
                                                      frame * p.latents_stride_frame;
    if (latents != nullptr && frame < p.num_pinned) {
      __builtin_memcpy(out + i, latents + i, (stop - i) * 4);
      continue;
    }
    const Row row{frame, count_before(p.starts, p.num_windows, frame - p.window + 1),
                  count_before(p.starts, p.num_windows, frame + 1), channel * p.stride_channel};
    for (; i + kVectors * kLanes <= stop; i += kVectors * kLanes) {
      step<T, f32v, kVectors>(p, row, i, latents, out);
    }
    for (; i + kLanes <= stop; i += kLanes) step<T, f32v, 1>(p, row, i, latents, out);
    for (; i < stop; ++i) step<T, float, 1>(p, row, i, latents, out);
  }
}

}  // namespace

void blf_step(const BlfStepParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat32) {
    run<float>(p, begin, end);
  } else {
    run<bf16>(p, begin, end);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
