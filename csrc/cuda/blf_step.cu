// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "pack.cuh"
#include "skyreels_rt/blf_step.h"
#include "skyreels_rt/cuda_api.h"

namespace skyreels_rt {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxWindows = 256;         // of one launch: their table travels as a kernel parameter
constexpr int64_t kMaxFrames = 65535;    // of one launch: grid dimension y
constexpr int64_t kMaxChannels = 65535;  // grid dimension z

// Latents [begin, begin + gridDim.y) and the windows that touch them.
struct Segment {
  const void* velocities[kMaxWindows];
  int32_t starts[kMaxWindows];
  int32_t num_windows;
  int32_t begin;
  int64_t first_window;
};

struct Sizes {
  const float* latents;
  const float* weights;
  float* out;
  float guidance[kMaxPasses];
  float delta;
  int32_t num_passes, window, num_pinned;
  int64_t length, plane, latents_stride_channel, latents_stride_frame;
  int64_t stride_pass, stride_channel, stride_frame;
};

static_assert(sizeof(Segment) + sizeof(Sizes) <= 4000, "kernel parameters hold 4 KiB");

__device__ inline int count_before(const Segment& s, int frame) {
  int low = 0;
  int high = s.num_windows;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (s.starts[middle] < frame) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// One thread per kPack neighbours; every product and sum is rounded on its own.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    step_kernel(const __grid_constant__ Segment s, const __grid_constant__ Sizes z) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack;
  if (i >= z.plane) return;
  const int frame = s.begin + static_cast<int>(blockIdx.y);
  const int64_t channel = blockIdx.z;
  float latents[kPack];
  if (z.latents != nullptr) {
    load_floats(z.latents + channel * z.latents_stride_channel + frame * z.latents_stride_frame + i,
                latents);
  }
  float* out = z.out + (channel * z.length + frame) * z.plane + i;
  if (z.latents != nullptr && frame < z.num_pinned) {
    store_floats(out, latents);
    return;
  }
  const int first = count_before(s, frame - z.window + 1);
  const int last = count_before(s, frame + 1);
  float sum[kPack];
  for (int w = first; w < last; ++w) {
    const int within = frame - s.starts[w];
    const float weight = z.weights[(s.first_window + w) * z.window + within];
    const T* velocity = static_cast<const T*>(s.velocities[w]) + channel * z.stride_channel +
                        within * z.stride_frame + i;
    float share[kPack];
    for (int pass = 0; pass < z.num_passes; ++pass) {
      const auto pack = load_pack<T, kPack>(velocity + pass * z.stride_pass);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const float term = __fmul_rn(to_float(pack.values[j]), z.guidance[pass]);
        share[j] = pass == 0 ? term : __fadd_rn(share[j], term);
      }
    }
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float term = __fmul_rn(share[j], weight);
      sum[j] = w == first ? term : __fadd_rn(sum[j], term);
    }
  }
  if (z.latents != nullptr) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum[j] = __fadd_rn(latents[j], __fmul_rn(sum[j], z.delta));
  }
  store_floats(out, sum);
}

// Whether all rows start at 16 bytes and hold whole packs.
template <class T>
bool can_pack(const BlfStepParams& p) {
  const int64_t counts[] = {p.plane,          p.latents_stride_channel, p.latents_stride_frame,
                            p.stride_channel, p.stride_frame,           p.stride_pass};
  for (const int64_t count : counts) {
    if (count % kWide<T> != 0) return false;
  }
  for (int64_t w = 0; w < p.num_windows; ++w) {
    if (!is_aligned(p.velocities[w], 16)) return false;
  }
  return is_aligned(p.latents, 16) && is_aligned(p.out, 16);
}

// Latents [begin, end), covered by windows [first, first + count).
template <class T, int kPack>
cudaError_t launch_segment(const BlfStepParams& p, int64_t begin, int64_t end, int64_t first,
                           int64_t count, cudaStream_t stream) {
  Segment s{};
  for (int64_t w = 0; w < count; ++w) {
    s.velocities[w] = p.velocities[first + w];
    s.starts[w] = static_cast<int32_t>(p.starts[first + w]);
  }
  s.num_windows = static_cast<int32_t>(count);
  s.begin = static_cast<int32_t>(begin);
  s.first_window = first;
  Sizes z{};
  z.latents = p.latents;
  z.weights = p.weights;
  z.out = p.out;
  for (int i = 0; i < kMaxPasses; ++i) z.guidance[i] = p.guidance[i];
  z.delta = p.delta;
  z.num_passes = static_cast<int32_t>(p.num_passes);
  z.window = static_cast<int32_t>(p.window);
  z.num_pinned = static_cast<int32_t>(p.num_pinned);
  z.length = p.length;
  z.plane = p.plane;
  z.latents_stride_channel = p.latents_stride_channel;
  z.latents_stride_frame = p.latents_stride_frame;
  z.stride_pass = p.stride_pass;
  z.stride_channel = p.stride_channel;
  z.stride_frame = p.stride_frame;
  const int64_t per_block = static_cast<int64_t>(kThreads) * kPack;
  const dim3 grid(static_cast<unsigned>((p.plane + per_block - 1) / per_block),
                  static_cast<unsigned>(end - begin), static_cast<unsigned>(p.channels));
  step_kernel<T, kPack><<<grid, kThreads, 0, stream>>>(s, z);
  return cudaGetLastError();
}

// Cuts the timeline into segments that at most kMaxWindows windows touch; mostly there is one.
template <class T>
cudaError_t launch(const BlfStepParams& p, cudaStream_t stream) {
  const auto run = can_pack<T>(p) ? launch_segment<T, kWide<T>> : launch_segment<T, 1>;
  int64_t first = 0;
  for (int64_t begin = 0; begin < p.length;) {
    while (p.starts[first] + p.window <= begin) ++first;
    int64_t end = p.length;
    if (first + kMaxWindows < p.num_windows) end = p.starts[first + kMaxWindows];
    if (end - begin > kMaxFrames) end = begin + kMaxFrames;
    if (end <= begin) return cudaErrorInvalidValue;  // more than kMaxWindows windows on one latent
    int64_t last = first;
    while (last < p.num_windows && p.starts[last] < end) ++last;
    const cudaError_t error = run(p, begin, end, first, last - first, stream);
    if (error != cudaSuccess) return error;
    begin = end;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace skyreels_rt

int skyreels_rt_cuda_blf_step(const float* latents, const void* const* velocities,
                              const int64_t* starts, const float* weights, const float* guidance,
                              float* out, int dtype, int64_t num_windows, int64_t num_passes,
                              int64_t window, int64_t channels, int64_t length, int64_t num_pinned,
                              int64_t plane, int64_t latents_stride_channel,
                              int64_t latents_stride_frame, int64_t stride_pass,
                              int64_t stride_channel, int64_t stride_frame, float delta,
                              void* stream) {
  using namespace skyreels_rt;
  if (num_windows < 1 || num_passes < 1 || num_passes > kMaxPasses || window < 1 || channels < 0 ||
      channels > kMaxChannels || length < 1 || length > INT32_MAX || plane < 0) {
    return cudaErrorInvalidValue;
  }
  if (channels == 0 || plane == 0) return cudaSuccess;
  if (velocities == nullptr || starts == nullptr || weights == nullptr || guidance == nullptr ||
      out == nullptr) {
    return cudaErrorInvalidValue;
  }
  BlfStepParams p{};
  p.latents = latents;
  p.velocities = velocities;
  p.starts = starts;
  p.weights = weights;
  p.out = out;
  for (int64_t i = 0; i < num_passes; ++i) p.guidance[i] = guidance[i];
  p.delta = delta;
  p.num_windows = num_windows;
  p.num_passes = num_passes;
  p.window = window;
  p.channels = channels;
  p.length = length;
  p.num_pinned = num_pinned;
  p.plane = plane;
  p.latents_stride_channel = latents_stride_channel;
  p.latents_stride_frame = latents_stride_frame;
  p.stride_pass = stride_pass;
  p.stride_channel = stride_channel;
  p.stride_frame = stride_frame;
  p.dtype = static_cast<DType>(dtype);
  auto* cuda_stream = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case DType::kFloat32:
      return launch<float>(p, cuda_stream);
    case DType::kBFloat16:
      return launch<__nv_bfloat16>(p, cuda_stream);
    case DType::kFloat16:
      return launch<__half>(p, cuda_stream);
  }
  return cudaErrorInvalidValue;
}
