// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/residual_store.h"

#include "bf16_pairs.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

constexpr int64_t kStep = 2 * kLanes;

// kStep elements.
inline void subtract(const float* before, const float* after, float* out) {
  store(out, load(after) - load(before));
  store(out + kLanes, load(after + kLanes) - load(before + kLanes));
}

inline void subtract(const bf16* before, const bf16* after, bf16* out) {
  const Pairs a = load_pairs(after);
  const Pairs b = load_pairs(before);
  store_pairs(out, {a.even - b.even, a.odd - b.odd});
}

template <class T>
void run(const ResidualStoreParams& p, int64_t begin, int64_t end) {
  const T* before = static_cast<const T*>(p.before);
  const T* after = static_cast<const T*>(p.after);
  T* out = static_cast<T*>(p.out);
  int64_t i = begin;
  for (; i + kStep <= end; i += kStep) subtract(before + i, after + i, out + i);
  for (; i < end; ++i) store1(out + i, load1(after + i) - load1(before + i));
}

}  // namespace

void residual_store(const ResidualStoreParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::kFloat32) {
    run<float>(p, begin, end);
  } else {
    run<bf16>(p, begin, end);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
