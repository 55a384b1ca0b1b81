// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/absorbed_audio_attention.h"

#include "simd.h"
#include "tiles.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

// Softmax over the tile's n rows, a lane for each row of the operator.
inline void softmax(float* tile, const float* shifts, int64_t n) {
  f32v largest = load(tile) + splat(shifts[0]);
  store(tile, largest);
  for (int64_t m = 1; m < n; ++m) {
    const f32v x = load(tile + m * kLanes) + splat(shifts[m]);
    store(tile + m * kLanes, x);
    largest = x > largest ? x : largest;
  }
  f32v sum{};
  for (int64_t m = 0; m < n; ++m) {
    const f32v e = vexp(load(tile + m * kLanes) - largest);
    store(tile + m * kLanes, e);
    sum += e;
  }
  const f32v factor = 1.0f / sum;
  for (int64_t m = 0; m < n; ++m) store(tile + m * kLanes, load(tile + m * kLanes) * factor);
}

// kLanes rows of one frame, fewer at its end: the missing ones repeat the last.
template <class T>
inline void block(const GroupSoftmaxParams& p, const float* shifts, const float* logits, T* out,
                  int64_t count, float* tile) {
  const int64_t columns = p.num_heads * p.tokens;
  const float* from[kLanes];
  T* to[kLanes];
  for (int j = 0; j < kLanes; ++j) {
    const int64_t row = j < count ? j : count - 1;
    from[j] = logits + row * columns;
    to[j] = out + row * columns;
  }
  for (int64_t head = 0; head < p.num_heads; ++head) {
    transpose_in(from, kLanes, p.tokens, tile);
    softmax(tile, shifts + head * p.tokens, p.tokens);
    transpose_out(tile, count, p.tokens, to);
    for (int j = 0; j < kLanes; ++j) {
      from[j] += p.tokens;
      to[j] += p.tokens;
    }
  }
}

template <class T>
void items(const GroupSoftmaxParams& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t columns = p.num_heads * p.tokens, blocks = softmax_blocks(p.rows);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t frame = item / blocks;
    const int64_t first = item % blocks * kSoftmaxRows;
    const int64_t last = first + kSoftmaxRows < p.rows ? first + kSoftmaxRows : p.rows;
    for (int64_t row = first; row < last; row += kLanes) {
      const int64_t at = (frame * p.rows + row) * columns;
      block(p, p.shifts + frame * columns, p.logits + at, static_cast<T*>(p.out) + at, last - row,
            scratch);
    }
  }
}

}  // namespace

void group_softmax(const GroupSoftmaxParams& p, int64_t begin, int64_t end, float* scratch) {
  if (p.dtype == DType::kFloat32) {
    items<float>(p, begin, end, scratch);
  } else {
    items<bf16>(p, begin, end, scratch);
  }
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
