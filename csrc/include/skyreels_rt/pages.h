// SPDX-License-Identifier: Apache-2.0
// Memory pages of fresh outputs.
#pragma once

#include <cstdint>

namespace skyreels_rt {

// Asks the system to back whole pages of [start, start + bytes) with huge ones when they are first
// touched: zeroing small pages one by one takes longer than what many operators compute. Advice
// only; nothing happens where the system has no such thing.
void prefer_huge_pages(void* start, int64_t bytes);

}  // namespace skyreels_rt
