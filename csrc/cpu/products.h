// SPDX-License-Identifier: Apache-2.0
// The products of matrices in attention: rows are keys or channels, columns are queries, which lie
// in the lanes. Every sum is one accumulator that runs along the depth: the same bytes in every
// build.
#pragma once

#include "elements.h"

namespace skyreels_rt::SKYREELS_RT_ISA {
namespace {

constexpr int kColumnVectors = 3;
constexpr int kColumns = kColumnVectors * kLanes;  // queries side by side
constexpr int kGroupRows = kLanes == 16 ? 8 : 4;   // what the registers hold beside them

struct Product {
  f32v sums[kGroupRows][kColumnVectors] = {};

  // Element (r, i) of the rows is rows[r * row_step + i * depth_step]; that of the columns
  // columns[i * kColumns + column]. Elements are floats or pairs of bf16.
  template <class E>
  inline void add(const E* rows, int64_t row_step, int64_t depth_step, const E* columns,
                  int64_t depth) {
    for (int64_t i = 0; i < depth; ++i) {
      decltype(load_elements(columns)) column[kColumnVectors];
#pragma GCC unroll 3
      for (int j = 0; j < kColumnVectors; ++j) {
        column[j] = load_elements(columns + i * kColumns + j * kLanes);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kGroupRows; ++r) {
        const auto row = repeat(rows[r * row_step + i * depth_step]);
#pragma GCC unroll 3
        for (int j = 0; j < kColumnVectors; ++j) {
          sums[r][j] = multiply_add(row, column[j], sums[r][j]);
        }
      }
    }
  }

  // Row r at to + r * kColumns.
  inline void put(float* to) const {
    for (int r = 0; r < kGroupRows; ++r) {
      for (int j = 0; j < kColumnVectors; ++j) store(to + r * kColumns + j * kLanes, sums[r][j]);
    }
  }

  // Starts from what put() left, each column times its factor.
  inline void take(const float* from, const f32v (&factors)[kColumnVectors]) {
    for (int r = 0; r < kGroupRows; ++r) {
      for (int j = 0; j < kColumnVectors; ++j) {
        sums[r][j] = load(from + r * kColumns + j * kLanes) * factors[j];
      }
    }
  }
};

}  // namespace
}  // namespace skyreels_rt::SKYREELS_RT_ISA
