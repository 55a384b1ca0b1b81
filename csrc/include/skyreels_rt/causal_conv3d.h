// SPDX-License-Identifier: Apache-2.0
// 3 x 3 convolution of a video's frames, over three frames or one (kernels/causal_conv3d.py).
#pragma once

#include <cstdint>

#include "skyreels_rt/isa.h"

namespace skyreels_rt {

// All tensors are fp32 with dense channels: (B, F, H, W, C).
struct CausalConv3dParams {
  const float* past;      // (B, taps - 1, .., C): frames before the first; null: zeros
  const float* x;         // (B, F, H, W, C), or (B, F, H / 2, W / 2, C) where doubled
  const float* weight;    // packed: (36, panels, taps * C, kPanel)
  const float* bias;      // (D), or null
  const float* residual;  // as y, or null
  float* y;               // (B, F, H, W, D)
  int64_t batch, channels, out_channels, frames, height, width;  // B, C, D, F, H, W
  int64_t taps;                                                  // frames of the kernel, 1 or 3
  bool doubled;                                                  // rows and columns count twice
};

constexpr int64_t kTile = 4;  // outputs of a tile's side
constexpr int64_t kPoints = (kTile + 2) * (kTile + 2);
constexpr int64_t kTileBlock = 16;        // tiles multiplied together
constexpr int64_t kPanel = 48;            // output channels multiplied together
constexpr int64_t kChannelMultiple = 16;  // of C and of D

inline int64_t conv_panels(const CausalConv3dParams& p) {
  return (p.out_channels + kPanel - 1) / kPanel;
}

// Tiles of a frame.
inline int64_t conv_tiles(const CausalConv3dParams& p) {
  return ((p.height + kTile - 1) / kTile) * ((p.width + kTile - 1) / kTile);
}

// Blocks of tiles of one video.
inline int64_t conv_blocks(const CausalConv3dParams& p) {
  return (conv_tiles(p) + kTileBlock - 1) / kTileBlock;
}

// Floats of scratch that a range of blocks needs.
inline int64_t conv_scratch(const CausalConv3dParams& p) {
  return kPoints * kTileBlock *
         ((p.frames + p.taps - 1) * p.channels + p.frames * conv_panels(p) * kPanel);
}

struct PackConvWeightParams {
  const float* weight;  // (D, C, taps, 9), of the strides below
  float* packed;        // (36, panels, taps * C, kPanel); columns beyond D are zeros
  int64_t out_channels, channels, taps;
  int64_t stride_out, stride_in, stride_tap, stride_pixel;
};

// Rows of the packed weight: one for each panel, tap and input channel.
inline int64_t packed_rows(const PackConvWeightParams& p) {
  return (p.out_channels + kPanel - 1) / kPanel * p.taps * p.channels;
}

// Rows [begin, end) of the packed weight, at all 36 points.
SKYREELS_RT_KERNEL(pack_conv_weight, const PackConvWeightParams& params, int64_t begin, int64_t end)

// The whole weight on num_threads threads. Arguments must have been checked by the caller.
void pack_conv_weight(const PackConvWeightParams& params, Isa isa, int num_threads);

// Blocks [begin, end) of the B * conv_blocks blocks.
SKYREELS_RT_KERNEL(causal_conv3d, const CausalConv3dParams& params, int64_t begin, int64_t end,
                   float* scratch)

// The whole operator on num_threads threads. Arguments must have been checked by the caller.
void causal_conv3d(const CausalConv3dParams& params, Isa isa, int num_threads);

}  // namespace skyreels_rt
