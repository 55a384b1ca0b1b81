// SPDX-License-Identifier: Apache-2.0
// Threads for the CPU operators: those of the OpenMP runtime that is in the process already (torch
// ships its own libgomp), else one persistent pool.
//
// Not linked to OpenMP: a second runtime in the process would oversubscribe the cores.
#pragma once

#include <cstdint>
#include <functional>

namespace skyreels_rt {

// Below this many bytes a second thread costs more than it saves, above all where cores are short.
constexpr int64_t kBytesPerRange = 128 * 1024;

using RangeFn = std::function<void(int64_t begin, int64_t end)>;

// Calls fn on disjoint ranges that cover [0, n), on at most num_threads threads (the caller is one
// of them). Ranges hold at least `grain` items, except the last. Which thread gets which range is
// not defined, so fn must give the same result for any split.
//
// A call from inside fn runs serially on its own thread; so does one while another thread's call
// is running, in the pool. The first exception thrown by fn is rethrown here once no range is
// running; the ranges not yet begun are skipped. After fork() the child gets a new pool on first
// use.
void parallel_for(int num_threads, int64_t n, int64_t grain, const RangeFn& fn);

}  // namespace skyreels_rt
