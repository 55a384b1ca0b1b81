// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/cpu_kernels.h"

#include <stdexcept>
#include <vector>

#include "skyreels_rt/parallel.h"

namespace skyreels_rt {
namespace {

// Below this many bytes a thread costs more to wake than it saves.
constexpr int64_t kBytesPerRange = 64 * 1024;

int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace

bool isa_available(Isa isa) {
  switch (isa) {
    case Isa::kPlain:
      return true;
#if defined(SKYREELS_RT_X86)
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return isa_available(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
#endif
    default:
      return false;
  }
}

Isa best_isa() {
  static const Isa best = isa_available(Isa::kAvx512) ? Isa::kAvx512
                          : isa_available(Isa::kAvx2) ? Isa::kAvx2
                                                      : Isa::kPlain;
  return best;
}

const CpuKernels& cpu_kernels(Isa isa) {
  if (!isa_available(isa)) throw std::invalid_argument("this processor lacks that instruction set");
#if defined(SKYREELS_RT_X86)
  if (isa == Isa::kAvx512) return avx512::kKernels;
  if (isa == Isa::kAvx2) return avx2::kKernels;
#endif
  return plain::kKernels;
}

void frames_to_uint8(const FramesToUint8Params& params, Isa isa, int num_threads) {
  const auto kernel = cpu_kernels(isa).frames_to_uint8;
  const int64_t grain = kBytesPerRange / (3 * element_size(params.dtype) + 3);
  parallel_for(num_threads, params.num_frames * params.plane, grain,
               [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

void qk_norm_rope(const QkNormRopeParams& params, Isa isa, int num_threads) {
  const auto kernel = cpu_kernels(isa).qk_norm_rope;
  const int64_t row_bytes = 4 * params.num_heads * params.head_dim * element_size(params.dtype);
  parallel_for(num_threads, params.batch * params.length, kBytesPerRange / (row_bytes + 1) + 1,
               [&](int64_t begin, int64_t end) {
                 std::vector<float> scratch(2 * params.head_dim);
                 kernel(params, begin, end, scratch.data());
               });
}

}  // namespace skyreels_rt
