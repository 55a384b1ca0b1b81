// SPDX-License-Identifier: Apache-2.0
// CPU operators: threaded entry points, and the table of single-thread kernels behind them.
//
// Every csrc/cpu/<op>.cpp is compiled once per instruction set. All builds of an operator do the
// same arithmetic in the same order (16 partial sums, no fused multiply-add), so the result has
// the same bytes on every machine and for every number of threads.
#pragma once

#include <cstdint>

#include "skyreels_rt/frames_to_uint8.h"
#include "skyreels_rt/qk_norm_rope.h"

namespace skyreels_rt {

enum class Isa : int { kPlain = 0, kAvx2 = 1, kAvx512 = 2 };

struct CpuKernels {
  // Pixels [begin, end) of the F * plane pixels, counted frame after frame.
  void (*frames_to_uint8)(const FramesToUint8Params& params, int64_t begin, int64_t end);
  // Rows [begin, end) of the B * L rows. scratch holds 2 * head_dim floats.
  void (*qk_norm_rope)(const QkNormRopeParams& params, int64_t begin, int64_t end, float* scratch);
};

// Whether this build contains `isa` and this processor can run it.
bool isa_available(Isa isa);

// The widest available instruction set.
Isa best_isa();

// Kernels of an available instruction set.
const CpuKernels& cpu_kernels(Isa isa);

// The operators on num_threads threads. Arguments must have been checked by the caller.
void frames_to_uint8(const FramesToUint8Params& params, Isa isa, int num_threads);
void qk_norm_rope(const QkNormRopeParams& params, Isa isa, int num_threads);

namespace plain {
extern const CpuKernels kKernels;
}
namespace avx2 {
extern const CpuKernels kKernels;
}
namespace avx512 {
extern const CpuKernels kKernels;
}

}  // namespace skyreels_rt
