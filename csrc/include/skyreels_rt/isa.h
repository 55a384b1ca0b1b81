// SPDX-License-Identifier: Apache-2.0
// Instruction sets, and the choice among the builds of a kernel.
//
// Every csrc/cpu/<op>.cpp is compiled once per instruction set, in a namespace of that name. All
// builds of an operator do the same arithmetic in the same order (16 partial sums; multiply-adds
// are fused where the code says so and nowhere else), so the result has the same bytes on every
// machine and for every number of threads. Products of bf16 pairs take subnormal numbers for zero
// where the processor does them (kAvx512Bf16); that alone may differ.
#pragma once

namespace skyreels_rt {

enum class Isa : int { kPlain = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// Whether this build contains `isa` and this processor can run it.
bool isa_available(Isa isa);

// The widest available instruction set.
Isa best_isa();

// Throws std::invalid_argument unless `isa` is available.
void require_isa(Isa isa);

}  // namespace skyreels_rt

// Declares the single-thread kernel `name` of every instruction set.
#define SKYREELS_RT_KERNEL(name, ...) \
  namespace plain {                   \
  void name(__VA_ARGS__);             \
  }                                   \
  namespace avx2 {                    \
  void name(__VA_ARGS__);             \
  }                                   \
  namespace avx512 {                  \
  void name(__VA_ARGS__);             \
  }                                   \
  namespace avx512_bf16 {             \
  void name(__VA_ARGS__);             \
  }

// The build of kernel `name` for an instruction set; a pointer to function.
#if defined(SKYREELS_RT_X86)
#define SKYREELS_RT_SELECT(isa, name)                                                             \
  (::skyreels_rt::require_isa(isa), (isa) == ::skyreels_rt::Isa::kAvx512Bf16 ? &avx512_bf16::name \
                                    : (isa) == ::skyreels_rt::Isa::kAvx512   ? &avx512::name      \
                                    : (isa) == ::skyreels_rt::Isa::kAvx2     ? &avx2::name        \
                                                                             : &plain::name)
#else
#define SKYREELS_RT_SELECT(isa, name) (::skyreels_rt::require_isa(isa), &plain::name)
#endif
