// SPDX-License-Identifier: Apache-2.0
#include "elementwise.cuh"
#include "skyreels_rt/cuda_api.h"

namespace {

struct Subtract {
  static __device__ float apply(float after, float before) { return __fsub_rn(after, before); }
};

}  // namespace

int skyreels_rt_cuda_residual_store(const void* before, const void* after, void* out, int dtype,
                                    int64_t count, void* stream) {
  return skyreels_rt::elementwise<Subtract>(after, before, out, dtype, count, stream);
}
