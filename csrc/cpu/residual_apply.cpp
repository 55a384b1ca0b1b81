// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/residual_apply.h"

#include "bf16_pairs.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

constexpr int64_t kStep = 2 * kLanes;

// kStep elements.
inline void add(float* x, const float* residual) {
  store(x, load(x) + load(residual));
  store(x + kLanes, load(x + kLanes) + load(residual + kLanes));
}

inline void add(bf16* x, const bf16* residual) {
  const Pairs a = load_pairs(x);
  const Pairs b = load_pairs(residual);
  store_pairs(x, {a.even + b.even, a.odd + b.odd});
}

template <class T>
void run(const ResidualApplyParams& p, int64_t begin, int64_t end) {
  T* x = static_cast<T*>(p.x);
  const T* residual = static_cast<const T*>(p.residual);
  int64_t i = begin;
  for (; i + kStep <= end; i += kStep) add(x + i, residual + i);
  for (; i < end; ++i) store1(x + i, load1(x + i) + load1(residual + i));
}

}  // namespace

void residual_apply(const ResidualApplyParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat32) {
    run<float>(p, begin, end);
  } else {
    run<bf16>(p, begin, end);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
