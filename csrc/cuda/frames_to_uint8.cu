// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "skyreels_rt/cuda_api.h"
#include "skyreels_rt/frames_to_uint8.h"

namespace skyreels_rt {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 4;               // per thread: 12 output bytes, written as three words
constexpr int64_t kMaxBlocks = 1 << 20;  // a grid-stride loop covers the rest

template <class T>
struct alignas(sizeof(T) * kPixels) Pack {
  T values[kPixels];
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

__device__ inline uint32_t quantize(float x) {
  // fmaxf(NaN, 0) is 0; separate add and multiply, as the reference rounds them.
  const float v = fminf(fmaxf(__fmul_rn(__fadd_rn(x, 1.0f), 127.5f), 0.0f), 255.0f);
  return static_cast<uint32_t>(__float2int_rn(v));
}

// One thread per pixel: any plane size and alignment.
template <class T>
__global__ void scalar_kernel(const T* __restrict__ src, uint8_t* __restrict__ dst,
                              int64_t num_pixels, int64_t plane, int64_t stride_channel,
                              int64_t stride_frame) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < num_pixels;
       i += step) {
    const T* first = src + (i / plane) * stride_frame + i % plane;
    for (int c = 0; c < 3; ++c) {
      dst[3 * i + c] = static_cast<uint8_t>(quantize(to_float(first[c * stride_channel])));
    }
  }
}

// One thread per four pixels: plane and strides are multiples of four, pointers are aligned.
template <class T>
__global__ void packed_kernel(const T* __restrict__ src, uint32_t* __restrict__ dst,
                              int64_t num_packs, int64_t packs_per_plane, int64_t stride_channel,
                              int64_t stride_frame) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < num_packs;
       i += step) {
    const T* first = src + (i / packs_per_plane) * stride_frame + (i % packs_per_plane) * kPixels;
    uint32_t words[3] = {0, 0, 0};
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(first + c * stride_channel);
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        const int byte = 3 * j + c;
        words[byte / 4] |= quantize(to_float(pack.values[j])) << (8 * (byte % 4));
      }
    }
#pragma unroll
    for (int w = 0; w < 3; ++w) dst[3 * i + w] = words[w];
  }
}

bool aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <class T>
cudaError_t launch(const FramesToUint8Params& p, cudaStream_t stream) {
  const T* src = static_cast<const T*>(p.src);
  const bool packed = p.plane % kPixels == 0 && p.stride_channel % kPixels == 0 &&
                      p.stride_frame % kPixels == 0 && aligned(src, sizeof(Pack<T>)) &&
                      aligned(p.dst, sizeof(uint32_t));
  const int64_t items = p.num_frames * p.plane / (packed ? kPixels : 1);
  const int64_t needed = (items + kThreads - 1) / kThreads;
  const auto blocks = static_cast<unsigned>(needed < kMaxBlocks ? needed : kMaxBlocks);
  if (packed) {
    packed_kernel<T><<<blocks, kThreads, 0, stream>>>(src, reinterpret_cast<uint32_t*>(p.dst),
                                                      items, p.plane / kPixels, p.stride_channel,
                                                      p.stride_frame);
  } else {
    scalar_kernel<T><<<blocks, kThreads, 0, stream>>>(src, p.dst, items, p.plane, p.stride_channel,
                                                      p.stride_frame);
  }
  return cudaGetLastError();
}

}  // namespace
}  // namespace skyreels_rt

int skyreels_rt_cuda_frames_to_uint8(const void* src, void* dst, int dtype, int64_t num_frames,
                                     int64_t plane, int64_t stride_channel, int64_t stride_frame,
                                     void* stream) {
  using namespace skyreels_rt;
  if (num_frames < 0 || plane < 0) return cudaErrorInvalidValue;
  if (num_frames == 0 || plane == 0) return cudaSuccess;
  if (src == nullptr || dst == nullptr) return cudaErrorInvalidValue;
  const FramesToUint8Params params{
      src,          static_cast<uint8_t*>(dst), num_frames, plane, stride_channel,
      stride_frame, static_cast<DType>(dtype)};
  auto* cuda_stream = static_cast<cudaStream_t>(stream);
  switch (params.dtype) {
    case DType::kFloat32:
      return launch<float>(params, cuda_stream);
    case DType::kBFloat16:
      return launch<__nv_bfloat16>(params, cuda_stream);
    case DType::kFloat16:
      return launch<__half>(params, cuda_stream);
  }
  return cudaErrorInvalidValue;
}
