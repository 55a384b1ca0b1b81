// SPDX-License-Identifier: Apache-2.0
// fp32 multiply-adds from shared memory, no tensor cores: every product and sum is exact to fp32
// for all element types. A block is one tile of queries of one (batch, frame, head); eight lanes
// share a row of scores, which stays in registers.
#include <cuda_runtime.h>

#include "pack.cuh"
#include "skyreels_rt/audio_cross_attention.h"
#include "skyreels_rt/cuda_api.h"

namespace skyreels_rt {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 8;  // threads of a query
constexpr int kGroups = kThreads / kLanes;
constexpr int kMaxHeadDim = 128;
constexpr int kPack = 8;                            // elements a thread loads at once
constexpr int kVectors = kMaxHeadDim / 4 / kLanes;  // of four channels, the most of a thread
constexpr int kPad = 4;          // floats behind a row in shared memory: eight rows, all banks
constexpr int kMaxFrames = 128;  // of one launch, whose ranges travel in the kernel's arguments
constexpr int kMaxTokens = 256;

struct Ranges {
  int32_t start_count[2 * kMaxFrames];
};

template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Row {
  T values[kCount];
};

template <class T>
__device__ inline void load_row(const T* from, bool aligned, float (&to)[kPack]) {
  Row<T, kPack> pack;
  if (aligned) {
    pack = *reinterpret_cast<const Row<T, kPack>*>(from);
  } else {
#pragma unroll
    for (int j = 0; j < kPack; ++j) pack.values[j] = from[j];
  }
#pragma unroll
  for (int j = 0; j < kPack; ++j) to[j] = to_float(pack.values[j]);
}

// Rows [0, valid) of K elements to shared memory as floats, rows up to `rows` as zeros; row r and
// channel i times row_scales[r] * weight[i] where those are given.
template <class T>
__device__ inline void load_rows(const T* from, int64_t stride, int rows, int valid, int head_dim,
                                 bool aligned, const float* row_scales, const float* weight,
                                 float* to) {
  const int packs = head_dim / kPack;
  for (int item = threadIdx.x; item < rows * packs; item += kThreads) {
    const int row = item / packs, channel = item % packs * kPack;
    float x[kPack] = {};
    if (row < valid) load_row(from + row * stride + channel, aligned, x);
    if (weight != nullptr && row < valid) {
      const float scale = row_scales[row];
#pragma unroll
      for (int j = 0; j < kPack; ++j) x[j] *= scale * weight[channel + j];
    }
    auto* target = reinterpret_cast<float4*>(to + row * (head_dim + kPad) + channel);
    target[0] = make_float4(x[0], x[1], x[2], x[3]);
    target[1] = make_float4(x[4], x[5], x[6], x[7]);
  }
}

__device__ inline float dot4(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

__device__ inline float4 axpy4(float a, float4 x, float4 y) {
  return make_float4(fmaf(a, x.x, y.x), fmaf(a, x.y, y.y), fmaf(a, x.z, y.z), fmaf(a, x.w, y.w));
}

// Scores to exp(score - maximum) in place; returns the inverse of their sum over the eight lanes,
// 0 where nothing is attended.
template <int kKeys>
__device__ inline float exponentials(float (&scores)[kKeys]) {
  float largest = -INFINITY;
#pragma unroll
  for (int j = 0; j < kKeys; ++j) largest = fmaxf(largest, scores[j]);
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  }
  const float origin = largest == -INFINITY ? 0.0f : largest;
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kKeys; ++j) {
    scores[j] = expf(scores[j] - origin);
    sum += scores[j];
  }
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum == 0.0f ? 0.0f : 1.0f / sum;
}

__host__ __device__ constexpr int queries_per_group(int keys) { return keys <= 8 ? 4 : 2; }
__host__ __device__ constexpr int keys_per_step(int keys) { return keys < 4 ? keys : 4; }

// One frame and head: rows of keys or values, in memory and, 32 at most at a time, in shared
// memory.
template <class T>
struct Rows {
  const T* from;
  int64_t stride;
  int count, head_dim;
  bool aligned;
  float* shared;

  // Rows [first, first + n), zeros behind the last; all threads of the block take part.
  __device__ void load(int first, int n) const {
    __syncthreads();
    load_rows(from + first * stride, stride, n, count - first, head_dim, aligned, nullptr, nullptr,
              shared);
    __syncthreads();
  }
};

template <class T, int kQueries, int kKeys>
__device__ inline void score(const float* queries, const Rows<T>& keys,
                             float (&scores)[kQueries][kKeys]) {
  constexpr int kStep = keys_per_step(kKeys);
  const int group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int row_floats = keys.head_dim + kPad;
#pragma unroll
  for (int step = 0; step < kKeys; step += kStep) {
    if (step * kLanes >= keys.count) break;
    keys.load(step * kLanes, kStep * kLanes);
    for (int i = 0; i < keys.head_dim; i += 4) {
      float4 q[kQueries];
#pragma unroll
      for (int x = 0; x < kQueries; ++x) {
        q[x] = *reinterpret_cast<const float4*>(queries + (x * kGroups + group) * row_floats + i);
      }
#pragma unroll
      for (int y = 0; y < kStep; ++y) {
        const float4 key =
            *reinterpret_cast<const float4*>(keys.shared + (y * kLanes + lane) * row_floats + i);
#pragma unroll
        for (int x = 0; x < kQueries; ++x) {
          scores[x][step + y] = dot4(q[x], key, scores[x][step + y]);
        }
      }
    }
  }
}

template <class T, int kQueries, int kKeys>
__device__ inline void mix(const float (&weights)[kQueries][kKeys], const Rows<T>& values,
                           float4 (&sums)[kQueries][kVectors]) {
  constexpr int kStep = keys_per_step(kKeys);
  const int lane = threadIdx.x % kLanes;
#pragma unroll
  for (int step = 0; step < kKeys; step += kStep) {
    if (step * kLanes >= values.count) break;
    values.load(step * kLanes, kStep * kLanes);
    for (int source = 0; source < kLanes; ++source) {
#pragma unroll
      for (int y = 0; y < kStep; ++y) {
        float w[kQueries];
#pragma unroll
        for (int x = 0; x < kQueries; ++x) {
          w[x] = __shfl_sync(0xffffffffu, weights[x][step + y], source, kLanes);
        }
        const float* row = values.shared + (y * kLanes + source) * (values.head_dim + kPad);
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
          const int at = 4 * (i * kLanes + lane);
          if (at >= values.head_dim) continue;
          const float4 v = *reinterpret_cast<const float4*>(row + at);
#pragma unroll
          for (int x = 0; x < kQueries; ++x) sums[x][i] = axpy4(w[x], v, sums[x][i]);
        }
      }
    }
  }
}

// kKeys: scores of a thread, so at most 8 * kKeys tokens a frame.
template <class T, int kKeys>
__global__ void __launch_bounds__(kThreads)
    attend_kernel(const AudioCrossAttentionParams p, const float* row_scales, const Ranges ranges,
                  int64_t first_frame, int64_t num_frames, bool aligned) {
  constexpr int kQueries = queries_per_group(kKeys);
  constexpr int kTile = kGroups * kQueries;
  extern __shared__ float4 shared[];
  const int head_dim = static_cast<int>(p.head_dim);
  float* queries = reinterpret_cast<float*>(shared);
  float* rows = queries + kTile * (head_dim + kPad);

  int64_t item = blockIdx.x;
  const int64_t channel = item % p.num_heads * head_dim;
  item /= p.num_heads;
  const int64_t tiles = (p.patches + kTile - 1) / kTile;
  const int64_t patch = item % tiles * kTile;
  item /= tiles;
  const int64_t frame = first_frame + item % num_frames, b = item / num_frames;
  const int64_t row = frame * p.patches + patch;
  const int valid = static_cast<int>(p.patches - patch < kTile ? p.patches - patch : kTile);
  const int64_t query_row = b * p.frames * p.patches + row;

  load_rows(static_cast<const T*>(p.q) + b * p.q_stride_batch + row * p.q_stride_row + channel,
            p.q_stride_row, kTile, valid, head_dim, aligned,
            row_scales == nullptr ? nullptr : row_scales + query_row,
            p.norm_weight == nullptr ? nullptr : p.norm_weight + channel, queries);

  int64_t start = 0;
  int count = static_cast<int>(p.tokens);
  if (p.ranges != nullptr) {
    start = ranges.start_count[2 * (frame - first_frame)];
    count = ranges.start_count[2 * (frame - first_frame) + 1];
  }
  const Rows<T> keys{static_cast<const T*>(p.k) + b * p.k_stride_batch + frame * p.k_stride_frame +
                         start * p.k_stride_row + channel,
                     p.k_stride_row,
                     count,
                     head_dim,
                     aligned,
                     rows};
  const Rows<T> values{static_cast<const T*>(p.v) + b * p.v_stride_batch +
                           frame * p.v_stride_frame + start * p.v_stride_row + channel,
                       p.v_stride_row,
                       count,
                       head_dim,
                       aligned,
                       rows};
  const uint8_t* mask = p.token_mask == nullptr ? nullptr
                                                : p.token_mask + b * p.mask_stride_batch +
                                                      frame * p.mask_stride_frame + start;

  float scores[kQueries][kKeys] = {};
  score(queries, keys, scores);
  const int group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const float scale = rsqrtf(static_cast<float>(head_dim));
#pragma unroll
  for (int j = 0; j < kKeys; ++j) {
    const int token = j * kLanes + lane;
    const bool attended = token < count && (mask == nullptr || mask[token] != 0);
#pragma unroll
    for (int x = 0; x < kQueries; ++x) {
      scores[x][j] = attended ? scores[x][j] * scale : -INFINITY;
    }
  }
  float factors[kQueries];
  const float gate = p.gate == nullptr ? 1.0f : p.gate[b * p.frames + frame];
#pragma unroll
  for (int x = 0; x < kQueries; ++x) factors[x] = gate * exponentials<kKeys>(scores[x]);

  float4 sums[kQueries][kVectors] = {};
  mix(scores, values, sums);
  T* out = static_cast<T*>(p.out) + query_row * p.num_heads * head_dim + channel;
#pragma unroll
  for (int x = 0; x < kQueries; ++x) {
    const int query = x * kGroups + group;
    if (query >= valid) continue;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int at = 4 * (i * kLanes + lane);
      if (at >= head_dim) continue;
      const float4 s = sums[x][i];
      const Row<T, 4> pack{{from_float<T>(s.x * factors[x]), from_float<T>(s.y * factors[x]),
                            from_float<T>(s.z * factors[x]), from_float<T>(s.w * factors[x])}};
      *reinterpret_cast<Row<T, 4>*>(out + query * p.num_heads * head_dim + at) = pack;
    }
  }
}

// One warp a row: 1 / sqrt(mean(x^2) + eps).
template <class T>
__global__ void __launch_bounds__(kThreads)
    query_scales_kernel(const T* q, float* scales, int64_t rows, int64_t length, int64_t width,
                        int64_t stride_batch, int64_t stride_row, float eps, bool aligned) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const T* from = q + row / length * stride_batch + row % length * stride_row;
  const int lane = threadIdx.x % 32;
  float sum = 0.0f;
  for (int64_t i = lane * kPack; i < width; i += 32 * kPack) {  // width is a multiple of kPack
    float x[kPack];
    load_row(from + i, aligned, x);
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum = fmaf(x[j], x[j], sum);
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) scales[row] = 1.0f / sqrtf(sum / static_cast<float>(width) + eps);
}

template <class T>
bool packs_aligned(const void* pointer, int64_t stride0, int64_t stride1, int64_t stride2) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride0 % kPack == 0 &&
         stride1 % kPack == 0 && stride2 % kPack == 0;
}

template <class T, int kKeys>
cudaError_t launch_keys(const AudioCrossAttentionParams& p, const float* row_scales,
                        cudaStream_t stream) {
  constexpr int kTile = kGroups * queries_per_group(kKeys);
  const int64_t rows = kTile + kLanes * keys_per_step(kKeys);
  const size_t bytes = rows * (p.head_dim + kPad) * sizeof(float);
  const cudaError_t error =
      cudaFuncSetAttribute(attend_kernel<T, kKeys>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  const bool aligned = packs_aligned<T>(p.q, p.q_stride_batch, p.q_stride_row, 0) &&
                       packs_aligned<T>(p.k, p.k_stride_batch, p.k_stride_frame, p.k_stride_row) &&
                       packs_aligned<T>(p.v, p.v_stride_batch, p.v_stride_frame, p.v_stride_row);
  const int64_t tiles = (p.patches + kTile - 1) / kTile;
  for (int64_t first = 0; first < p.frames; first += kMaxFrames) {
    const int64_t frames = p.frames - first < kMaxFrames ? p.frames - first : kMaxFrames;
    Ranges ranges{};
    for (int64_t i = 0; p.ranges != nullptr && i < 2 * frames; ++i) {
      ranges.start_count[i] = p.ranges[2 * first + i];
    }
    const int64_t blocks = p.batch * frames * tiles * p.num_heads;
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    attend_kernel<T, kKeys><<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(
        p, row_scales, ranges, first, frames, aligned);
  }
  return cudaGetLastError();
}

template <class T>
cudaError_t launch(const AudioCrossAttentionParams& p, const float* row_scales,
                   cudaStream_t stream) {
  if (p.tokens <= 8) return launch_keys<T, 1>(p, row_scales, stream);
  if (p.tokens <= 16) return launch_keys<T, 2>(p, row_scales, stream);
  if (p.tokens <= 32) return launch_keys<T, 4>(p, row_scales, stream);
  if (p.tokens <= 64) return launch_keys<T, 8>(p, row_scales, stream);
  if (p.tokens <= 128) return launch_keys<T, 16>(p, row_scales, stream);
  return launch_keys<T, 32>(p, row_scales, stream);
}

template <class T>
cudaError_t launch_scales(const void* q, float* scales, int64_t rows, int64_t length, int64_t width,
                          int64_t stride_batch, int64_t stride_row, float eps,
                          cudaStream_t stream) {
  constexpr int kRows = kThreads / 32;
  const bool aligned = packs_aligned<T>(q, stride_batch, stride_row, 0);
  query_scales_kernel<T>
      <<<static_cast<unsigned>((rows + kRows - 1) / kRows), kThreads, 0, stream>>>(
          static_cast<const T*>(q), scales, rows, length, width, stride_batch, stride_row, eps,
          aligned);
  return cudaGetLastError();
}

}  // namespace
}  // namespace skyreels_rt

int skyreels_rt_cuda_audio_query_scales(const void* q, float* scales, int dtype, int64_t batch,
                                        int64_t length, int64_t width, int64_t stride_batch,
                                        int64_t stride_row, float eps, void* stream) {
  using namespace skyreels_rt;
  const int64_t rows = batch * length;
  if (batch < 0 || length < 0 || width < 1 || width % kPack != 0) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  if (q == nullptr || scales == nullptr || rows > INT32_MAX) return cudaErrorInvalidValue;
  auto* cuda_stream = static_cast<cudaStream_t>(stream);
  switch (static_cast<DType>(dtype)) {
    case DType::kFloat32:
      return launch_scales<float>(q, scales, rows, length, width, stride_batch, stride_row, eps,
                                  cuda_stream);
    case DType::kBFloat16:
      return launch_scales<__nv_bfloat16>(q, scales, rows, length, width, stride_batch, stride_row,
                                          eps, cuda_stream);
    case DType::kFloat16:
      return launch_scales<__half>(q, scales, rows, length, width, stride_batch, stride_row, eps,
                                   cuda_stream);
  }
  return cudaErrorInvalidValue;
}

int skyreels_rt_cuda_audio_cross_attention(const void* q, const void* k, const void* v, void* out,
                                           const int32_t* ranges, const void* token_mask,
                                           const float* gate, const float* norm_weight,
                                           const float* query_scales, int dtype,
                                           const int64_t* sizes, const int64_t* strides,
                                           void* stream) {
  using namespace skyreels_rt;
  if (sizes == nullptr || strides == nullptr) return cudaErrorInvalidValue;
  AudioCrossAttentionParams p{};
  p.q = q;
  p.k = k;
  p.v = v;
  p.out = out;
  p.ranges = ranges;
  p.token_mask = static_cast<const uint8_t*>(token_mask);
  p.gate = gate;
  p.norm_weight = norm_weight;
  set_layout(p, sizes, strides);
  p.dtype = static_cast<DType>(dtype);
  if (p.batch < 0 || p.frames < 0 || p.patches < 0 || p.tokens < 1 || p.tokens > kMaxTokens ||
      p.num_heads < 1 || p.head_dim < kPack || p.head_dim > kMaxHeadDim ||
      p.head_dim % kPack != 0 || (norm_weight == nullptr) != (query_scales == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (p.batch == 0 || p.frames == 0 || p.patches == 0) return cudaSuccess;
  if (q == nullptr || k == nullptr || v == nullptr || out == nullptr) return cudaErrorInvalidValue;
  auto* cuda_stream = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case DType::kFloat32:
      return launch<float>(p, query_scales, cuda_stream);
    case DType::kBFloat16:
      return launch<__nv_bfloat16>(p, query_scales, cuda_stream);
    case DType::kFloat16:
      return launch<__half>(p, query_scales, cuda_stream);
  }
  return cudaErrorInvalidValue;
}
