// SPDX-License-Identifier: Apache-2.0
// Element types and the version of the native interface, shared by the CPU and the CUDA library.
#pragma once

#include <cstdint>

namespace skyreels_rt {

// Raised whenever a native signature changes; Python refuses a library of another version.
constexpr int kAbiVersion = 2;

// Codes as Python passes them. 16-bit floats are stored as their bit patterns.
enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

constexpr int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// One row of D values for each of S segments of tokens: (B or 1, S, D), last dimension dense.
struct SegmentTable {
  const float* data;
  int64_t stride_batch;    // elements; 0 where the batch is broadcast
  int64_t stride_segment;  // elements
  int64_t tokens;          // per segment: L / S
};

}  // namespace skyreels_rt
