// SPDX-License-Identifier: Apache-2.0
// bf16 in pairs for elementwise operators: two neighbours share a 32-bit lane, so that nothing has
// to be widened into other lanes and back. Rounds as store() of simd.h.
#pragma once

#include "simd.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

// Elements 0, 2, 4 ... and 1, 3, 5 ... of 2 * kLanes neighbours.
struct Pairs {
  f32v even, odd;
};

inline Pairs load_pairs(const bf16* p) {
  const u32v words = load_raw<u32v>(p);
  return {(f32v)(words << 16), (f32v)(words & 0xffff0000u)};
}

// The bf16 nearest to each lane in the upper half; what is in the lower half is not defined.
inline u32v round_upper(f32v v) {
  const u32v u = (u32v)v;
  const u32v rounded = u + 0x7fffu + ((u >> 16) & 1u);
  return v == v ? rounded : (u32v){} + 0x7fc00000u;
}

inline void store_pairs(bf16* p, Pairs v) {
  store_raw(p, (round_upper(v.even) >> 16) | (round_upper(v.odd) & 0xffff0000u));
}

}  // namespace
}  // namespace skyreels_rt::SKYREELS_RT_ISA
