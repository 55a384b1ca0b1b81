// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/gate_residual_norm_modulate.h"

#include "rows.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

static_assert(gate_residual_norm_modulate_scratch(1) == kRows, "scratch for kRows rows");

// The sum before it is rounded: x itself in fp32, a copy where x has fewer bits.
inline const float* unrounded(const float* x, const float*) { return x; }
inline const float* unrounded(const bf16*, const float* copy) { return copy; }
inline void keep(float*, f32v, int64_t, const float*) {}
inline void keep(float* copy, f32v v, int64_t n, const bf16*) { store_part(copy, v, n); }

struct Tables {
  const float *gate, *weight, *bias;  // gate may be null
};

template <int R, bool kGated, class T>
inline void add_normalise(T* first, int64_t x_stride, const T* other, int64_t y_stride,
                          const Tables& tables, int64_t width, float eps, T* normed,
                          float* scratch) {
  T *x[R], *out[R];
  const T* y[R];
  float* copy[R];
  const float* sum[R];
  Sums sums[R];
  float mean[R], scale[R];
  for (int r = 0; r < R; ++r) {
    x[r] = first + r * x_stride;
    y[r] = other + r * y_stride;
    out[r] = normed + r * width;
    copy[r] = scratch + r * width;
    sum[r] = unrounded(x[r], copy[r]);
  }
  const float* gate = tables.gate;
  for_each_vector(width, [&](int64_t i, int part, int64_t n) {
    const f32v g = kGated ? load_part(gate + i, n, 0.0f) : f32v{};
    for (int r = 0; r < R; ++r) {
      const f32v v = load_part(y[r] + i, n, 0.0f);
      const f32v s = load_part(x[r] + i, n, 0.0f) + (kGated ? g * v : v);
      store_part(x[r] + i, s, n);
      keep(copy[r] + i, s, n, x[r]);
      sums[r].parts[part] += s;
    }
  });
  moments(sum, sums, width, eps, mean, scale);
  affine(sum, mean, scale, tables.weight, tables.bias, width, out);
}

template <bool kGated, class T>
void rows(const GateResidualNormModulateParams& p, int64_t begin, int64_t end, float* scratch) {
  while (begin < end) {
    const int64_t b = begin / p.length;
    const int64_t l = begin % p.length;
    int64_t count = lesser(lesser(end - begin, p.length - l), segment_left(p.weight, l));
    Tables tables{nullptr, segment_row(p.weight, b, l), segment_row(p.bias, b, l)};
    if (kGated) {
      count = lesser(count, segment_left(p.gate, l));
      tables.gate = segment_row(p.gate, b, l);
    }
    T* x = static_cast<T*>(p.x) + b * p.x_stride_batch + l * p.x_stride_row;
    const T* y = static_cast<const T*>(p.y) + b * p.y_stride_batch + l * p.y_stride_row;
    T* out = static_cast<T*>(p.normed) + begin * p.width;
    begin += count;
    while (count > 0) {
      const int64_t step = count >= kRows ? kRows : 1;
      const auto run =
          step == kRows ? add_normalise<kRows, kGated, T> : add_normalise<1, kGated, T>;
      run(x, p.x_stride_row, y, p.y_stride_row, tables, p.width, p.eps, out, scratch);
      x += step * p.x_stride_row;
      y += step * p.y_stride_row;
      out += step * p.width;
      count -= step;
    }
  }
}

}  // namespace

void gate_residual_norm_modulate(const GateResidualNormModulateParams& p, int64_t begin,
                                 int64_t end, float* scratch) {
  const bool gated = p.gate.data != nullptr;
  if (p.dtype == DType::kFloat32) {
    gated ? rows<true, float>(p, begin, end, scratch) : rows<false, float>(p, begin, end, scratch);
  } else {
    gated ? rows<true, bf16>(p, begin, end, scratch) : rows<false, bf16>(p, begin, end, scratch);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
