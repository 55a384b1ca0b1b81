// SPDX-License-Identifier: Apache-2.0
// Tests of the thread pool and of the agreement between instruction sets; needs no Python.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "skyreels_rt/frames_to_uint8.h"
#include "skyreels_rt/parallel.h"
#include "skyreels_rt/qk_norm_rope.h"

namespace rt = skyreels_rt;

namespace {

int g_failures = 0;

void check(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "FAILED: %s\n", what);
  ++g_failures;
}

// Whether parallel_for visits each of n items exactly once.
bool covers(int threads, int64_t n, int64_t grain) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
  rt::parallel_for(threads, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) seen[static_cast<size_t>(i)].fetch_add(1);
  });
  for (auto& count : seen) {
    if (count.load() != 1) return false;
  }
  return true;
}

void test_coverage() {
  for (int threads : {1, 2, 3, 8}) {
    for (int64_t n : {0, 1, 7, 1000, 4099}) {
      for (int64_t grain : {0, 1, 64, 5000}) check(covers(threads, n, grain), "each item once");
    }
  }
}

void test_many_callers() {
  std::atomic<int> bad{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        if (!covers(4, 257, 1)) bad.fetch_add(1);
      }
    });
  }
  for (auto& caller : callers) caller.join();
  check(bad.load() == 0, "concurrent callers");
}

void test_nested() {
  std::atomic<int64_t> sum{0};
  rt::parallel_for(4, 8, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      rt::parallel_for(4, 100, 1, [&](int64_t b, int64_t e) { sum.fetch_add(e - b); });
    }
  });
  check(sum.load() == 800, "nested calls");
}

void test_exception() {
  bool caught = false;
  try {
    rt::parallel_for(4, 100, 1, [](int64_t begin, int64_t) {
      if (begin == 0) throw std::runtime_error("planned");
    });
  } catch (const std::runtime_error&) {
    caught = true;
  }
  check(caught, "exception reaches the caller");
  check(covers(4, 1000, 1), "pool works after an exception");
}

void test_fork() {
#if !defined(__SANITIZE_THREAD__)
  check(covers(4, 1000, 1), "before fork");
  const pid_t child = fork();
  if (child == 0) _exit(covers(4, 1000, 1) ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "pool works in a forked child");
#endif
}

// Runs both operators on fixed inputs and returns all output bytes.
std::vector<unsigned char> outputs(rt::Isa isa, int threads, rt::DType dtype) {
  constexpr int64_t kHeads = 3, kHeadDim = 22, kLength = 37, kPlane = 1001, kFrames = 2;
  const size_t width = dtype == rt::DType::kFloat32 ? 4 : 2;
  uint32_t state = 1;
  const auto fill = [&](std::vector<unsigned char>& bytes, size_t count) {
    bytes.resize(count * width);
    for (size_t i = 0; i < count; ++i) {
      state = state * 1664525u + 1013904223u;
      const float value = static_cast<float>(state >> 8) / static_cast<float>(1 << 23) - 1.0f;
      unsigned char raw[4];
      std::memcpy(raw, &value, 4);
      std::memcpy(&bytes[i * width], raw + 4 - width, width);
    }
  };
  std::vector<unsigned char> q, k, frames;
  fill(q, kLength * kHeads * kHeadDim);
  fill(k, kLength * kHeads * kHeadDim);
  fill(frames, 3 * kFrames * kPlane);
  std::vector<float> weight(kHeads * kHeadDim, 1.25f), cosine(kLength * kHeadDim / 2, 0.8f),
      sine(kLength * kHeadDim / 2, 0.6f);
  constexpr int64_t kRow = kHeads * kHeadDim;
  rt::QkNormRopeParams norm{q.data(),       k.data(), weight.data(),  weight.data(), cosine.data(),
                            sine.data(),    1,        kLength,        kHeads,        kHeadDim,
                            kLength * kRow, kRow,     kLength * kRow, kRow,          1e-6f,
                            dtype};
  rt::qk_norm_rope(norm, isa, threads);
  std::vector<unsigned char> rgb(3 * kFrames * kPlane);
  rt::FramesToUint8Params convert{frames.data(),    rgb.data(), kFrames, kPlane,
                                  kFrames * kPlane, kPlane,     dtype};
  rt::frames_to_uint8(convert, isa, threads);
  q.insert(q.end(), k.begin(), k.end());
  q.insert(q.end(), rgb.begin(), rgb.end());
  return q;
}

void test_instruction_sets_agree() {
  for (rt::DType dtype : {rt::DType::kFloat32, rt::DType::kBFloat16}) {
    const auto expected = outputs(rt::Isa::kPlain, 1, dtype);
    for (rt::Isa isa : {rt::Isa::kPlain, rt::Isa::kAvx2, rt::Isa::kAvx512}) {
      if (!rt::isa_available(isa)) continue;
      check(outputs(isa, 1, dtype) == expected, "same bytes on every instruction set");
      check(outputs(isa, 4, dtype) == expected, "same bytes on any number of threads");
    }
  }
}

}  // namespace

int main() {
  test_coverage();
  test_many_callers();
  test_nested();
  test_exception();
  test_fork();
  test_instruction_sets_agree();
  std::printf(g_failures ? "%d failures\n" : "ok\n", g_failures);
  return g_failures ? 1 : 0;
}
