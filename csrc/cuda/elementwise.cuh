// SPDX-License-Identifier: Apache-2.0
// One operation on two dense tensors, shared by the residual operators.
#pragma once

#include <cuda_runtime.h>

#include "pack.cuh"
#include "skyreels_rt/types.h"

namespace skyreels_rt {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // a grid-stride loop covers the rest

// out = Op(a, b) in fp32, one rounding. One thread per kPack neighbours, element by element at the
// end. Not __restrict__: out may be a or b.
template <class Op, class T, int kPack>
__global__ void __launch_bounds__(kThreads)
    elementwise_kernel(const T* a, const T* b, T* out, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kPack;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kPack; i < count;
       i += step) {
    if (i + kPack <= count) {
      const auto left = load_pack<T, kPack>(a + i);
      const auto right = load_pack<T, kPack>(b + i);
      Pack<T, kPack> result;
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        result.values[j] =
            from_float<T>(Op::apply(to_float(left.values[j]), to_float(right.values[j])));
      }
      *reinterpret_cast<Pack<T, kPack>*>(out + i) = result;
    } else {
      for (int64_t j = i; j < count; ++j) {
        out[j] = from_float<T>(Op::apply(to_float(a[j]), to_float(b[j])));
      }
    }
  }
}

template <class Op, class T>
cudaError_t launch_elementwise(const void* a, const void* b, void* out, int64_t count,
                               cudaStream_t stream) {
  const bool packed = is_aligned(a, 16) && is_aligned(b, 16) && is_aligned(out, 16);
  const int64_t per_block = static_cast<int64_t>(kThreads) * (packed ? kWide<T> : 1);
  const int64_t needed = (count + per_block - 1) / per_block;
  const auto blocks = static_cast<unsigned>(needed < kMaxBlocks ? needed : kMaxBlocks);
  const auto kernel = packed ? elementwise_kernel<Op, T, kWide<T>> : elementwise_kernel<Op, T, 1>;
  kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const T*>(a), static_cast<const T*>(b),
                                          static_cast<T*>(out), count);
  return cudaGetLastError();
}

// Checks the arguments of the C interface, then launches for the type.
template <class Op>
int elementwise(const void* a, const void* b, void* out, int dtype, int64_t count, void* stream) {
  if (count < 0) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  if (a == nullptr || b == nullptr || out == nullptr) return cudaErrorInvalidValue;
  auto* cuda_stream = static_cast<cudaStream_t>(stream);
  switch (static_cast<DType>(dtype)) {
    case DType::kFloat32:
      return launch_elementwise<Op, float>(a, b, out, count, cuda_stream);
    case DType::kBFloat16:
      return launch_elementwise<Op, __nv_bfloat16>(a, b, out, count, cuda_stream);
    case DType::kFloat16:
      return launch_elementwise<Op, __half>(a, b, out, count, cuda_stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace skyreels_rt
