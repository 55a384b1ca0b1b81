// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "pack.cuh"
#include "skyreels_rt/cuda_api.h"
#include "skyreels_rt/residual_store.h"

namespace skyreels_rt {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // a grid-stride loop covers the rest

// One thread per kPack neighbours, element by element at the end. Not __restrict__: out is also
// read.
template <class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    residual_kernel(const T* before, const T* after, T* out, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kPack;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack; i < count;
       i += step) {
    if (i + kPack <= count) {
      const auto a = load_pack<T, kPack>(before + i);
      const auto b = load_pack<T, kPack>(after + i);
      Pack<T, kPack> result;
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        result.values[j] = from_float<T>(__fsub_rn(to_float(b.values[j]), to_float(a.values[j])));
      }
      *reinterpret_cast<Pack<T, kPack>*>(out + i) = result;
    } else {
      for (int64_t j = i; j < count; ++j) {
        out[j] = from_float<T>(__fsub_rn(to_float(after[j]), to_float(before[j])));
      }
    }
  }
}

template <class T>
cudaError_t launch(const ResidualStoreParams& p, cudaStream_t stream) {
  const bool packed = is_aligned(p.before, 16) && is_aligned(p.after, 16) && is_aligned(p.out, 16);
  const int64_t per_block = static_cast<int64_t>(kThreads) * (packed ? kWide<T> : 1);
  const int64_t needed = (p.count + per_block - 1) / per_block;
  const auto blocks = static_cast<unsigned>(needed < kMaxBlocks ? needed : kMaxBlocks);
  const auto kernel = packed ? residual_kernel<T, kWide<T>> : residual_kernel<T, 1>;
  kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const T*>(p.before),
                                          static_cast<const T*>(p.after), static_cast<T*>(p.out),
                                          p.count);
  return cudaGetLastError();
}

}  // namespace
}  // namespace skyreels_rt

int skyreels_rt_cuda_residual_store(const void* before, const void* after, void* out, int dtype,
                                    int64_t count, void* stream) {
  using namespace skyreels_rt;
  if (count < 0) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  if (before == nullptr || after == nullptr || out == nullptr) return cudaErrorInvalidValue;
  const ResidualStoreParams params{before, after, out, count, static_cast<DType>(dtype)};
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
