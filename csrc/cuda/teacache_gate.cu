// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "pack.cuh"
#include "skyreels_rt/cuda_api.h"
#include "skyreels_rt/teacache_gate.h"

namespace skyreels_rt {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Sums of both values over the block, in thread 0; the order is fixed.
__device__ inline void block_sum(double& a, double& b) {
  __shared__ double parts[2][kWarps];
  for (int offset = 16; offset > 0; offset /= 2) {
    a = __dadd_rn(a, __shfl_down_sync(0xffffffffu, a, offset));
    b = __dadd_rn(b, __shfl_down_sync(0xffffffffu, b, offset));
  }
  if (threadIdx.x % 32 == 0) {
    parts[0][threadIdx.x / 32] = a;
    parts[1][threadIdx.x / 32] = b;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kWarps; ++warp) {
      a = __dadd_rn(a, parts[0][warp]);
      b = __dadd_rn(b, parts[1][warp]);
    }
  }
}

// One block per chunk. A thread takes the same elements whether it loads packs or single ones.
template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads)
    partial_sums_kernel(const T* __restrict__ signal, const T* __restrict__ previous, int64_t count,
                        double* __restrict__ sums) {
  constexpr int kPack = kWide<T>;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int64_t end = begin + kChunk < count ? begin + kChunk : count;
  float change = 0.0f;
  float size = 0.0f;
  for (int64_t i = begin + threadIdx.x * kPack; i < end; i += kThreads * kPack) {
    Pack<T, kPack> now, before;
    if (kPacked && i + kPack <= end) {
      now = load_pack<T, kPack>(signal + i);
      before = load_pack<T, kPack>(previous + i);
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        now.values[j] = from_float<T>(i + j < end ? to_float(signal[i + j]) : 0.0f);
        before.values[j] = from_float<T>(i + j < end ? to_float(previous[i + j]) : 0.0f);
      }
    }
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float b = to_float(before.values[j]);
      change += fabsf(to_float(now.values[j]) - b);
      size += fabsf(b);
    }
  }
  double a = change;
  double b = size;
  block_sum(a, b);
  if (threadIdx.x == 0) {
    sums[2 * static_cast<int64_t>(blockIdx.x)] = a;
    sums[2 * static_cast<int64_t>(blockIdx.x) + 1] = b;
  }
}

struct Rule {
  double coefficients[kMaxCoefficients];
  int num_coefficients;
  bool forced;
  float threshold;
};

// One block.
__global__ void __launch_bounds__(kThreads)
    decide_kernel(const double* __restrict__ sums, int64_t num_chunks,
                  const __grid_constant__ Rule rule, float* accumulated, uint8_t* skip) {
  double change = 0.0;
  double size = 0.0;
  for (int64_t i = threadIdx.x; i < num_chunks; i += kThreads) {
    change = __dadd_rn(change, sums[2 * i]);
    size = __dadd_rn(size, sums[2 * i + 1]);
  }
  block_sum(change, size);
  if (threadIdx.x != 0) return;
  float total = 0.0f;
  bool low = false;
  if (!rule.forced) {
    const double ratio = __ddiv_rn(change, size);
    double estimate = 0.0;
    for (int i = 0; i < rule.num_coefficients; ++i) {
      estimate = __dadd_rn(__dmul_rn(estimate, ratio), rule.coefficients[i]);
    }
    total = __double2float_rn(__dadd_rn(*accumulated, estimate));
    low = total < rule.threshold && isfinite(total);
  }
  *accumulated = low ? total : 0.0f;
  *skip = low ? 1 : 0;
}

template <class T>
cudaError_t launch_sums(const TeacacheGateParams& p, double* sums, unsigned num_chunks,
                        cudaStream_t stream) {
  const T* signal = static_cast<const T*>(p.signal);
  const T* previous = static_cast<const T*>(p.previous);
  const bool packed = is_aligned(signal, 16) && is_aligned(previous, 16);
  const auto kernel = packed ? partial_sums_kernel<T, true> : partial_sums_kernel<T, false>;
  kernel<<<num_chunks, kThreads, 0, stream>>>(signal, previous, p.count, sums);
  return cudaGetLastError();
}

cudaError_t launch(const TeacacheGateParams& p, double* sums, int64_t num_chunks,
                   cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  const auto blocks = static_cast<unsigned>(num_chunks);
  if (num_chunks > 0) {
    switch (p.dtype) {
      case DType::kFloat32:
        error = launch_sums<float>(p, sums, blocks, stream);
        break;
      case DType::kBFloat16:
        error = launch_sums<__nv_bfloat16>(p, sums, blocks, stream);
        break;
      case DType::kFloat16:
        error = launch_sums<__half>(p, sums, blocks, stream);
        break;
    }
  }
  if (error != cudaSuccess) return error;
  Rule rule{};
  for (int i = 0; i < p.num_coefficients; ++i) rule.coefficients[i] = p.coefficients[i];
  rule.num_coefficients = p.num_coefficients;
  rule.forced = p.forced;
  rule.threshold = p.threshold;
  decide_kernel<<<1, kThreads, 0, stream>>>(sums, num_chunks, rule, p.accumulated, p.skip);
  return cudaGetLastError();
}

}  // namespace
}  // namespace skyreels_rt

int skyreels_rt_cuda_teacache_gate(const void* signal, const void* previous, float* accumulated,
                                   uint8_t* skip, double* sums, const double* coefficients,
                                   int num_coefficients, int dtype, int forced, int64_t count,
                                   int64_t num_chunks, float threshold, void* stream) {
  using namespace skyreels_rt;
  const int64_t needed = forced ? 0 : (count + kChunk - 1) / kChunk;
  if (count < 0 || num_chunks != needed || num_chunks > INT32_MAX || num_coefficients < 1 ||
      num_coefficients > kMaxCoefficients || dtype < 0 || dtype > 2 || coefficients == nullptr ||
      accumulated == nullptr || skip == nullptr) {
    return cudaErrorInvalidValue;
  }
  if (num_chunks > 0 && (signal == nullptr || previous == nullptr || sums == nullptr)) {
    return cudaErrorInvalidValue;
  }
  TeacacheGateParams p{};
  p.signal = signal;
  p.previous = previous;
  p.accumulated = accumulated;
  p.skip = skip;
  for (int i = 0; i < num_coefficients; ++i) p.coefficients[i] = coefficients[i];
  p.num_coefficients = num_coefficients;
  p.forced = forced != 0;
  p.count = count;
  p.threshold = threshold;
  p.dtype = static_cast<DType>(dtype);
  return launch(p, sums, num_chunks, static_cast<cudaStream_t>(stream));
}
