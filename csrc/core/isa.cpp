// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/isa.h"

#include <stdexcept>

namespace skyreels_rt {

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
    case Isa::kAvx512Bf16:
      return isa_available(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
#endif
    default:
      return false;
  }
}

Isa best_isa() {
  static const Isa best = isa_available(Isa::kAvx512Bf16) ? Isa::kAvx512Bf16
                          : isa_available(Isa::kAvx512)   ? Isa::kAvx512
                          : isa_available(Isa::kAvx2)     ? Isa::kAvx2
                                                          : Isa::kPlain;
  return best;
}

void require_isa(Isa isa) {
  if (!isa_available(isa)) throw std::invalid_argument("this processor lacks that instruction set");
}

}  // namespace skyreels_rt
