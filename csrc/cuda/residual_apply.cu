// SPDX-License-Identifier: Apache-2.0
#include "elementwise.cuh"
#include "skyreels_rt/cuda_api.h"

namespace {

struct Add {
  static __device__ float apply(float x, float residual) { return __fadd_rn(x, residual); }
};

}  // namespace

int skyreels_rt_cuda_residual_apply(void* x, const void* residual, int dtype, int64_t count,
                                    void* stream) {
  return skyreels_rt::elementwise<Add>(x, residual, x, dtype, count, stream);
}
