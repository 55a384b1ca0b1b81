// SPDX-License-Identifier: Apache-2.0
// TeaCache's decision whether a step may be skipped (kernels/teacache_gate.py).
#pragma once

#include <cstdint>

#include "skyreels_rt/isa.h"
#include "skyreels_rt/types.h"

namespace skyreels_rt {

constexpr int kMaxCoefficients = 8;
constexpr int64_t kChunk = 16384;  // elements of one pair of partial sums

struct TeacacheGateParams {
  const void* signal;                     // dense
  const void* previous;                   // the layout of signal
  float* accumulated;                     // (1), updated
  uint8_t* skip;                          // (1), written: 0 or 1
  double coefficients[kMaxCoefficients];  // highest power first
  int num_coefficients;
  bool forced;    // compute the step in any case
  int64_t count;  // elements of signal
  float threshold;
  DType dtype;  // of signal and previous
};

// For chunks [begin, end): sums[2 c] = sum |signal - previous|, sums[2 c + 1] = sum |previous|.
SKYREELS_RT_KERNEL(teacache_gate, const TeacacheGateParams& params, int64_t begin, int64_t end,
                   double* sums)

// The whole operator on num_threads threads. Arguments must have been checked by the caller.
void teacache_gate(const TeacacheGateParams& params, Isa isa, int num_threads);

}  // namespace skyreels_rt
