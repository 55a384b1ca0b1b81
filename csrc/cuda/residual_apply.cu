// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "pack.cuh"
#include "skyreels_rt/cuda_api.h"
#include "skyreels_rt/residual_apply.h"

namespace skyreels_rt {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // a grid-stride loop covers the rest

// One thread per kPack neighbours, element by element at the end. Not __restrict__: x is also read.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    residual_kernel(T* x, const T* residual, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kPack;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack; i < count;
       i += step) {
    if (i + kPack <= count) {
      const auto a = load_pack<T, kPack>(x + i);
      const auto b = load_pack<T, kPack>(residual + i);
      Pack<T, kPack> result;
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        result.values[j] = from_float<T>(__fadd_rn(to_float(a.values[j]), to_float(b.values[j])));
      }
      *reinterpret_cast<Pack<T, kPack>*>(x + i) = result;
    } else {
      for (int64_t j = i; j < count; ++j) {
        x[j] = from_float<T>(__fadd_rn(to_float(x[j]), to_float(residual[j])));
      }
    }
  }
}

template <class T>
cudaError_t launch(const ResidualApplyParams& p, cudaStream_t stream) {
  const bool packed = is_aligned(p.x, 16) && is_aligned(p.residual, 16);
  const int64_t per_block = static_cast<int64_t>(kThreads) * (packed ? kWide<T> : 1);
  const int64_t needed = (p.count + per_block - 1) / per_block;
  const auto blocks = static_cast<unsigned>(needed < kMaxBlocks ? needed : kMaxBlocks);
  const auto kernel = packed ? residual_kernel<T, kWide<T>> : residual_kernel<T, 1>;
  kernel<<<blocks, kThreads, 0, stream>>>(static_cast<T*>(p.x), static_cast<const T*>(p.residual),
                                          p.count);
  return cudaGetLastError();
}

}  // namespace
}  // namespace skyreels_rt

int skyreels_rt_cuda_residual_apply(void* x, const void* residual, int dtype, int64_t count,
                                    void* stream) {
  using namespace skyreels_rt;
  if (count < 0) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  if (x == nullptr || residual == nullptr) return cudaErrorInvalidValue;
  const ResidualApplyParams params{x, residual, count, static_cast<DType>(dtype)};
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
