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

// latents (C, N, h, w) float32 or null (then dst is the fused velocity); velocities: num_windows
// device addresses of (P, C, n, h, w) in dtype, all of one layout, in host memory, as starts and
// guidance; weights (num_windows, n) float32, dst (C, N, h, w) float32, both dense. Planes of h * w
// elements are dense; strides in elements. At most 256 windows may cover one latent.
SKYREELS_RT_EXPORT int skyreels_rt_cuda_blf_step(
    const float* latents, const void* const* velocities, const int64_t* starts,
    const float* weights, const float* guidance, float* dst, int dtype, int64_t num_windows,
    int64_t num_passes, int64_t window, int64_t channels, int64_t length, int64_t num_pinned,
    int64_t plane, int64_t latents_stride_channel, int64_t latents_stride_frame,
    int64_t stride_pass, int64_t stride_channel, int64_t stride_frame, float delta, void* stream);

// out = after - before; all dense, of one layout, `count` elements of dtype.
SKYREELS_RT_EXPORT int skyreels_rt_cuda_residual_store(const void* before, const void* after,
                                                       void* out, int dtype, int64_t count,
                                                       void* stream);

// x += residual; both dense, of one layout, `count` elements of dtype.
SKYREELS_RT_EXPORT int skyreels_rt_cuda_residual_apply(void* x, const void* residual, int dtype,
                                                       int64_t count, void* stream);

// accumulated (1) float32, skip (1) bool; sums: scratch of 2 * num_chunks float64, num_chunks the
// number of 16384-element chunks of the signal, 0 where forced; coefficients in host memory.
SKYREELS_RT_EXPORT int skyreels_rt_cuda_teacache_gate(const void* signal, const void* previous,
                                                      float* accumulated, uint8_t* skip,
                                                      double* sums, const double* coefficients,
                                                      int num_coefficients, int dtype, int forced,
                                                      int64_t count, int64_t num_chunks,
                                                      float threshold, void* stream);

// q (B, L, W) of dtype, last dimension dense, W a multiple of 8; scales (B, L): of each row
// 1 / sqrt(mean of squares + eps).
SKYREELS_RT_EXPORT int skyreels_rt_cuda_audio_query_scales(const void* q, float* scales, int dtype,
                                                           int64_t batch, int64_t length,
                                                           int64_t width, int64_t stride_batch,
                                                           int64_t stride_row, float eps,
                                                           void* stream);

// q (B, F * P, N * K), k and v (B, F, M, N * K) or with ranges (B, T, N * K), last dimension dense;
// out as q, dense. On the host: ranges (F, 2) or null, start and count of each frame's tokens;
// sizes B F P M N K, M at most 256 and with ranges the largest count, K a multiple of 8 up to 128;
// strides in elements of q (batch, row), k, v (batch, frame, row each), token_mask (batch, frame).
// token_mask (B, F, M) or (B, T) bytes, gate (B, F), or null; norm_weight (N * K) and query_scales
// (B, F * P) both or neither.
SKYREELS_RT_EXPORT int skyreels_rt_cuda_audio_cross_attention(
    const void* q, const void* k, const void* v, void* out, const int32_t* ranges,
    const void* token_mask, const float* gate, const float* norm_weight, const float* query_scales,
    int dtype, const int64_t* sizes, const int64_t* strides, void* stream);

#if defined(__cplusplus)
}
#endif
