// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/rms_norm_silu.h"

#include "rows.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

constexpr float kFloor = 1e-12f;  // smallest norm divided by, as in F.normalize
constexpr int kBlockVectors = kPositionBlock / kLanes;

template <bool kSilu>
inline f32v activate(f32v v) {
  return kSilu ? v / (1.0f + vexp(-v)) : v;
}

inline f32v root(f32v v) {
#if defined(__AVX512F__)
  return (f32v)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// sqrt(C) / max(norm, floor); a NaN stays one.
inline f32v norm_scale(f32v squares, float root_channels) {
  const f32v norm = root(squares);
  return root_channels / (norm < kFloor ? splat(kFloor) : norm);
}

// `count` positions whose channels are `stride` apart: kPositionBlock of them where kFull.
template <bool kFull, bool kSilu, class T>
void planes(const T* x, T* y, const float* gamma, int64_t channels, int64_t stride, int64_t count,
            float* scratch) {
  const int64_t n = kFull ? kPositionBlock : count;
  const float root_channels = __builtin_sqrtf(static_cast<float>(channels));
  f32v scale[kBlockVectors] = {};
  float* kept = scratch;
  for (int64_t c = 0; c < channels; ++c, kept += kPositionBlock) {
    const T* run = x + c * stride;
    for (int j = 0; j * kLanes < n; ++j) {
      const f32v v = load_part(run + j * kLanes, n - j * kLanes, 0.0f);
      store(kept + j * kLanes, v);
      scale[j] += v * v;
    }
  }
  for (f32v& v : scale) v = norm_scale(v, root_channels);
  kept = scratch;
  for (int64_t c = 0; c < channels; ++c, kept += kPositionBlock) {
    T* run = y + c * stride;
    const f32v gain = splat(gamma[c]);
    for (int j = 0; j * kLanes < n; ++j) {
      const f32v v = activate<kSilu>(load(kept + j * kLanes) * scale[j] * gain);
      store_part(run + j * kLanes, v, n - j * kLanes);
    }
  }
}

// R positions whose channels are dense.
template <int R, bool kSilu, class T>
inline void rows(const T* x, T* y, const float* gamma, int64_t channels) {
  const float root_channels = __builtin_sqrtf(static_cast<float>(channels));
  Sums squares[R];
  f32v scale[R];
  for_each_vector(channels, [&](int64_t i, int part, int64_t n) {
    for (int r = 0; r < R; ++r) {
      const f32v v = load_part(x + r * channels + i, n, 0.0f);
      squares[r].parts[part] += v * v;
    }
  });
  for (int r = 0; r < R; ++r) scale[r] = norm_scale(splat(squares[r].total()), root_channels);
  for_each_vector(channels, [&](int64_t i, int, int64_t n) {
    const f32v gain = load_part(gamma + i, n, 0.0f);
    for (int r = 0; r < R; ++r) {
      const f32v v = load_part(x + r * channels + i, n, 0.0f) * scale[r] * gain;
      store_part(y + r * channels + i, activate<kSilu>(v), n);
    }
  });
}

template <bool kSilu, class T>
void normalise(const RmsNormSiluParams& p, int64_t begin, int64_t end, float* scratch) {
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  if (p.channels_last) {
    for (; begin + kRows <= end; begin += kRows) {
      rows<kRows, kSilu>(x + begin * p.channels, y + begin * p.channels, p.gamma, p.channels);
    }
    for (; begin < end; ++begin) {
      rows<1, kSilu>(x + begin * p.channels, y + begin * p.channels, p.gamma, p.channels);
    }
    return;
  }
  while (begin < end) {
    const int64_t position = begin % p.positions;
    const int64_t offset = begin / p.positions * p.channels * p.positions + position;
    const int64_t n = lesser(kPositionBlock, lesser(end - begin, p.positions - position));
    const auto run = n == kPositionBlock ? planes<true, kSilu, T> : planes<false, kSilu, T>;
    run(x + offset, y + offset, p.gamma, p.channels, p.positions, n, scratch);
    begin += n;
  }
}

}  // namespace

void rms_norm_silu(const RmsNormSiluParams& p, int64_t begin, int64_t end, float* scratch) {
  const bool silu = p.silu;
  if (p.dtype == DType::kFloat32) {
    silu ? normalise<true, float>(p, begin, end, scratch)
         : normalise<false, float>(p, begin, end, scratch);
  } else {
    silu ? normalise<true, bf16>(p, begin, end, scratch)
         : normalise<false, bf16>(p, begin, end, scratch);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
