// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/norm_modulate.h"

#include "rows.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

template <int R, class T>
inline void normalise(const T* first, int64_t stride, const float* weight, const float* bias,
                      int64_t width, float eps, T* out) {
  const T* x[R];
  T* y[R];
  Sums sums[R];
  float mean[R], scale[R];
  for (int r = 0; r < R; ++r) {
    x[r] = first + r * stride;
    y[r] = out + r * width;
  }
  for_each_vector(width, [&](int64_t i, int part, int64_t n) {
    for (int r = 0; r < R; ++r) sums[r].parts[part] += load_part(x[r] + i, n, 0.0f);
  });
  moments(x, sums, width, eps, mean, scale);
  affine(x, mean, scale, weight, bias, width, y);
}

template <class T>
void rows(const NormModulateParams& p, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t b = begin / p.length;
    const int64_t l = begin % p.length;
    int64_t count = lesser(end - begin, lesser(p.length - l, segment_left(p.weight, l)));
    const float* weight = segment_row(p.weight, b, l);
    const float* bias = segment_row(p.bias, b, l);
    const T* x = static_cast<const T*>(p.x) + b * p.stride_batch + l * p.stride_row;
    T* y = static_cast<T*>(p.y) + begin * p.width;
    begin += count;
    for (; count >= kRows; count -= kRows, x += kRows * p.stride_row, y += kRows * p.width) {
      normalise<kRows>(x, p.stride_row, weight, bias, p.width, p.eps, y);
    }
    for (; count > 0; --count, x += p.stride_row, y += p.width) {
      normalise<1>(x, p.stride_row, weight, bias, p.width, p.eps, y);
    }
  }
}

}  // namespace

void norm_modulate(const NormModulateParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat32) {
    rows<float>(p, begin, end);
  } else {
    rows<bf16>(p, begin, end);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
