// SPDX-License-Identifier: Apache-2.0
// Everything libskyreels_rt_cuda.so exports: plain C, device pointers, a stream, a cudaError_t
// (as int) back. Nothing here synchronises or allocates. The caller makes the right device
// current. skyreels_rt/kernels/_native.py mirrors these signatures.
#pragma once

#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define SKYREELS_RT_EXPORT __attribute__((visibility("default")))

// kAbiVersion of types.h; compared before any other call.
SKYREELS_RT_EXPORT int skyreels_rt_cuda_abi_version(void);

// Text of an error code that another function returned.
SKYREELS_RT_EXPORT const char* skyreels_rt_cuda_error_string(int error);

// src (3, F, H, W) of dtype 0 float32 | 1 bfloat16 | 2 float16, dense planes of H * W elements;
// dst (F, H, W, 3) uint8, dense. Strides in elements.
SKYREELS_RT_EXPORT int skyreels_rt_cuda_frames_to_uint8(const void* src, void* dst, int dtype,
                                                        int64_t num_frames, int64_t plane,
                                                        int64_t stride_channel,
                                                        int64_t stride_frame, void* stream);

#if defined(__cplusplus)
}
#endif
