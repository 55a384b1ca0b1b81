// SPDX-License-Identifier: Apache-2.0
// Winograd's F(4 x 4, 3 x 3): six by six inputs become 36 points, at each of which the convolution
// is a product of matrices over input channels and frames; 36 multiplications for what takes 144.
#include "skyreels_rt/causal_conv3d.h"

#include "simd.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

constexpr int kSide = kTile + 2;
constexpr int kVectors = 3;  // side by side in a product: kPanel is a multiple of their lanes
#if defined(__AVX512F__)
constexpr int kGroup = 8;  // rows of a product in registers
#else
constexpr int kGroup = 4;
#endif

// Rows of the block's inputs at one point and frame lie together, as do those of its products.
struct Layout {
  int64_t frames, channels;

  float* at(float* base, int64_t point, int64_t frame) const {
    return base + (point * frames + frame) * kTileBlock * channels;
  }
};

// B^T d for one column of six.
inline void transform_in(const f32v (&d)[kSide], f32v (&v)[kSide]) {
  const f32v even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
  const f32v near = d[4] - d[2], far = 2.0f * (d[3] - d[1]);
  v[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
  v[1] = even + odd;
  v[2] = even - odd;
  v[3] = near + far;
  v[4] = near - far;
  v[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

// A^T m for one column of six.
inline void transform_out(const f32v (&m)[kSide], f32v (&y)[kTile]) {
  const f32v sum1 = m[1] + m[2], difference1 = m[1] - m[2];
  const f32v sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  y[0] = m[0] + sum1 + sum2;
  y[1] = difference1 + 2.0f * difference2;
  y[2] = sum1 + 4.0f * sum2;
  y[3] = difference1 + 8.0f * difference2 + m[5];
}

// The 36 points of one tile of one frame; `frame` is its image, (rows, columns, channels).
void tile_in(const CausalConv3dParams& p, const float* frame, int64_t top, int64_t left,
             const Layout& inputs, float* points, int64_t index, int64_t tile) {
  const int shift = p.doubled ? 1 : 0;
  const int64_t columns = p.width >> shift;
  const float* pixels[kPoints];
  for (int i = 0; i < kSide; ++i) {
    for (int j = 0; j < kSide; ++j) {
      const int64_t row = top + i - 1, column = left + j - 1;
      const bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
      pixels[i * kSide + j] =
          inside ? frame + ((row >> shift) * columns + (column >> shift)) * p.channels : nullptr;
    }
  }
  for (int64_t c = 0; c < p.channels; c += kLanes) {
    f32v half[kSide][kSide];
    for (int j = 0; j < kSide; ++j) {
      f32v d[kSide], v[kSide];
      for (int i = 0; i < kSide; ++i) {
        const float* pixel = pixels[i * kSide + j];
        d[i] = pixel ? load(pixel + c) : f32v{};
      }
      transform_in(d, v);
      for (int i = 0; i < kSide; ++i) half[i][j] = v[i];
    }
    for (int i = 0; i < kSide; ++i) {
      f32v v[kSide];
      transform_in(half[i], v);
      for (int j = 0; j < kSide; ++j) {
        store(inputs.at(points, i * kSide + j, index) + tile * p.channels + c, v[j]);
      }
    }
  }
}

// kGroup rows times kVectors vectors of columns, summed over `count` channels.
struct Product {
  f32v sums[kGroup][kVectors] = {};

  void add(const float* rows, const float* weights, int64_t count, int64_t stride) {
    for (int64_t k = 0; k < count; ++k, weights += kPanel) {
      f32v w[kVectors];
      for (int j = 0; j < kVectors; ++j) w[j] = load(weights + j * kLanes);
      for (int r = 0; r < kGroup; ++r) {
        const f32v a = splat(rows[r * stride + k]);
        for (int j = 0; j < kVectors; ++j) sums[r][j] = vfma(a, w[j], sums[r][j]);
      }
    }
  }
};

// Products of one point: every frame of the block with the taps that reach it.
void multiply(const CausalConv3dParams& p, int64_t point, const Layout& inputs, float* points,
              const Layout& outputs, float* products) {
  const int64_t depth = p.taps * p.channels, panels = conv_panels(p);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const float* weights = p.weight + (point * panels + panel) * depth * kPanel;
    for (int64_t t = 0; t < p.frames; ++t) {
      for (int64_t lane = 0; lane < kPanel; lane += kVectors * kLanes) {
        for (int64_t row = 0; row < kTileBlock; row += kGroup) {
          Product product;
          for (int64_t tap = 0; tap < p.taps; ++tap) {
            if (p.past == nullptr && t + tap < p.taps - 1) continue;
            product.add(inputs.at(points, point, t + tap) + row * p.channels,
                        weights + tap * p.channels * kPanel + lane, p.channels, p.channels);
          }
          float* to = outputs.at(products, point, t) + row * outputs.channels + panel * kPanel;
          for (int r = 0; r < kGroup; ++r) {
            for (int j = 0; j < kVectors; ++j) {
              store(to + r * outputs.channels + lane + j * kLanes, product.sums[r][j]);
            }
          }
        }
      }
    }
  }
}

// Pixels of one tile of one frame of the output.
void tile_out(const CausalConv3dParams& p, int64_t first_pixel, int64_t top, int64_t left,
              const Layout& outputs, float* products, int64_t t, int64_t tile) {
  for (int64_t c = 0; c < p.out_channels; c += kLanes) {
    f32v half[kSide][kTile];
    for (int i = 0; i < kSide; ++i) {
      f32v m[kSide];
      for (int j = 0; j < kSide; ++j) {
        m[j] = load(outputs.at(products, i * kSide + j, t) + tile * outputs.channels + c);
      }
      transform_out(m, half[i]);
    }
    const f32v bias = p.bias ? load(p.bias + c) : f32v{};
    for (int j = 0; j < kTile && left + j < p.width; ++j) {
      f32v m[kSide], y[kTile];
      for (int i = 0; i < kSide; ++i) m[i] = half[i][j];
      transform_out(m, y);
      for (int i = 0; i < kTile && top + i < p.height; ++i) {
        const int64_t pixel = first_pixel + (top + i) * p.width + left + j;
        f32v value = y[i] + bias;
        if (p.residual) value += load(p.residual + pixel * p.out_channels + c);
        store(p.y + pixel * p.out_channels + c, value);
      }
    }
  }
}

void block(const CausalConv3dParams& p, int64_t video, int64_t first, float* scratch) {
  const int64_t past = p.taps - 1, across = (p.width + kTile - 1) / kTile;
  const int64_t tiles = conv_tiles(p);
  const int64_t count = first + kTileBlock < tiles ? kTileBlock : tiles - first;
  const Layout inputs{p.frames + past, p.channels};
  const Layout outputs{p.frames, conv_panels(p) * kPanel};
  float* points = scratch;
  float* products = scratch + kPoints * inputs.frames * kTileBlock * inputs.channels;
  if (count < kTileBlock) {
    for (float* f = points; f < products; ++f) *f = 0.0f;
  }
  const int64_t source = (p.height * p.width >> (p.doubled ? 2 : 0)) * p.channels;
  for (int64_t index = p.past ? 0 : past; index < p.frames + past; ++index) {
    const float* frame = index < past ? p.past + (video * past + index) * source
                                      : p.x + (video * p.frames + index - past) * source;
    for (int64_t tile = 0; tile < count; ++tile) {
      const int64_t top = (first + tile) / across * kTile, left = (first + tile) % across * kTile;
      tile_in(p, frame, top, left, inputs, points, index, tile);
    }
  }
  for (int64_t point = 0; point < kPoints; ++point) {
    multiply(p, point, inputs, points, outputs, products);
  }
  for (int64_t t = 0; t < p.frames; ++t) {
    for (int64_t tile = 0; tile < count; ++tile) {
      const int64_t top = (first + tile) / across * kTile, left = (first + tile) % across * kTile;
      const int64_t pixel = (video * p.frames + t) * p.height * p.width;
      tile_out(p, pixel, top, left, outputs, products, t, tile);
    }
  }
}

// G g for one column of three.
inline void transform_weight(const f32v (&g)[3], f32v (&u)[kSide]) {
  const f32v outer = (g[0] + g[2]) * (1.0f / 6.0f), middle = g[1] * (1.0f / 6.0f);
  const f32v spread = g[0] * (1.0f / 24.0f) + g[2] * (1.0f / 6.0f), half = g[1] * (1.0f / 12.0f);
  u[0] = g[0] * 0.25f;
  u[1] = -(outer + middle);
  u[2] = middle - outer;
  u[3] = spread + half;
  u[4] = spread - half;
  u[5] = g[2];
}

// kLanes output channels, fewer at the end, of one input channel and tap; `kernel` is the first
// one.
void pack_columns(const PackConvWeightParams& p, const float* kernel, int64_t count, float* to) {
  const int64_t point_size = packed_rows(p) * kPanel;
  f32v g[9];
  for (int i = 0; i < 9; ++i) {
    g[i] = f32v{};
    for (int64_t d = 0; d < kLanes && d < count; ++d) {
      g[i][d] = kernel[d * p.stride_out + i * p.stride_pixel];
    }
  }
  f32v half[kSide][3];
  for (int j = 0; j < 3; ++j) {
    const f32v column[3] = {g[j], g[3 + j], g[6 + j]};
    f32v u[kSide];
    transform_weight(column, u);
    for (int i = 0; i < kSide; ++i) half[i][j] = u[i];
  }
  for (int i = 0; i < kSide; ++i) {
    f32v u[kSide];
    transform_weight(half[i], u);
    for (int j = 0; j < kSide; ++j) store(to + (i * kSide + j) * point_size, u[j]);
  }
}

}  // namespace

void pack_conv_weight(const PackConvWeightParams& p, int64_t begin, int64_t end) {
  const int64_t depth = p.taps * p.channels;
  for (; begin < end; ++begin) {
    const int64_t panel = begin / depth, tap = begin % depth / p.channels, c = begin % p.channels;
    for (int64_t lane = 0; lane < kPanel; lane += kLanes) {
      const int64_t first = panel * kPanel + lane;
      const float* kernel = p.weight + first * p.stride_out + c * p.stride_in + tap * p.stride_tap;
      pack_columns(p, kernel, p.out_channels - first, p.packed + begin * kPanel + lane);
    }
  }
}

void causal_conv3d(const CausalConv3dParams& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t blocks = conv_blocks(p);
  for (; begin < end; ++begin) block(p, begin / blocks, begin % blocks * kTileBlock, scratch);
}

}  // namespace skyreels_rt::SKYREELS_RT_ISA
