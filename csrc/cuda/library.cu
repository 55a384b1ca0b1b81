// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "skyreels_rt/cuda_api.h"
#include "skyreels_rt/types.h"

int skyreels_rt_cuda_abi_version(void) { return skyreels_rt::kAbiVersion; }

const char* skyreels_rt_cuda_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
