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

#include "skyreels_rt/audio_cross_attention.h"
#include "skyreels_rt/dense_attention.h"
#include "skyreels_rt/frames_to_uint8.h"
#include "skyreels_rt/pages.h"
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

using Bytes = std::vector<unsigned char>;

// Numbers in [-1, 1), the same in every run.
class Numbers {
 public:
  explicit Numbers(rt::DType dtype) : width_(static_cast<size_t>(rt::element_size(dtype))) {}

  Bytes make(int64_t count) {
    Bytes bytes(static_cast<size_t>(count) * width_);
    for (size_t at = 0; at < bytes.size(); at += width_) {
      state_ = state_ * 1664525u + 1013904223u;
      const float value = static_cast<float>(state_ >> 8) / static_cast<float>(1 << 23) - 1.0f;
      unsigned char raw[4];
      std::memcpy(raw, &value, 4);
      std::memcpy(&bytes[at], raw + 4 - width_, width_);
    }
    return bytes;
  }

 private:
  size_t width_;
  uint32_t state_ = 1;
};

Bytes normed_and_converted(rt::Isa isa, int threads, rt::DType dtype) {
  constexpr int64_t kHeads = 3, kHeadDim = 22, kLength = 37, kPlane = 1001, kFrames = 2;
  constexpr int64_t kRow = kHeads * kHeadDim;
  Numbers numbers(dtype);
  Bytes q = numbers.make(kLength * kRow), k = numbers.make(kLength * kRow);
  Bytes frames = numbers.make(3 * kFrames * kPlane);
  std::vector<float> weight(kRow, 1.25f), cosine(kLength * kHeadDim / 2, 0.8f),
      sine(kLength * kHeadDim / 2, 0.6f);
  rt::QkNormRopeParams norm{q.data(),       k.data(), weight.data(),  weight.data(), cosine.data(),
                            sine.data(),    1,        kLength,        kHeads,        kHeadDim,
                            kLength * kRow, kRow,     kLength * kRow, kRow,          1e-6f,
                            dtype};
  rt::qk_norm_rope(norm, isa, threads);
  Bytes rgb(3 * kFrames * kPlane);
  rt::FramesToUint8Params convert{frames.data(),    rgb.data(), kFrames, kPlane,
                                  kFrames * kPlane, kPlane,     dtype};
  rt::frames_to_uint8(convert, isa, threads);
  q.insert(q.end(), k.begin(), k.end());
  q.insert(q.end(), rgb.begin(), rgb.end());
  return q;
}

// Odd in every size, and more than one block of keys.
Bytes attended(rt::Isa isa, int threads, rt::DType dtype, int64_t head_dim) {
  constexpr int64_t kHeads = 2, kQueries = 101, kKeys = 131;
  const int64_t row = kHeads * head_dim;
  Numbers numbers(dtype);
  const Bytes q = numbers.make(kQueries * row), k = numbers.make(kKeys * row);
  const Bytes v = numbers.make(kKeys * row);
  Bytes out(q.size());
  std::vector<float> maxima(kHeads * kQueries), sums(kHeads * kQueries);
  const rt::HeadStrides of_queries{kQueries * row, head_dim, row};
  const rt::HeadStrides of_keys{kKeys * row, head_dim, row};
  rt::DenseAttentionParams p{q.data(), k.data(), v.data(),   out.data(), maxima.data(), sums.data(),
                             1,        kHeads,   kQueries,   kKeys,      head_dim,      of_queries,
                             of_keys,  of_keys,  of_queries, dtype};
  rt::dense_attention(p, isa, threads);
  return out;
}

Bytes heard(rt::Isa isa, int threads, rt::DType dtype, int64_t head_dim) {
  constexpr int64_t kHeads = 2, kFrames = 2, kPatches = 41, kTokens = 13;
  const int64_t row = kHeads * head_dim;
  Numbers numbers(dtype);
  const Bytes q = numbers.make(kFrames * kPatches * row), k = numbers.make(kFrames * kTokens * row);
  const Bytes v = numbers.make(kFrames * kTokens * row);
  Bytes out(q.size());
  rt::AudioCrossAttentionParams p{};
  p.q = q.data();
  p.k = k.data();
  p.v = v.data();
  p.out = out.data();
  const int64_t sizes[] = {1, kFrames, kPatches, kTokens, kHeads, head_dim};
  const int64_t of_frame = kTokens * row, all = kFrames * of_frame;
  const int64_t strides[] = {
      kFrames * kPatches * row, row, all, of_frame, row, all, of_frame, row, 0, 0};
  rt::set_layout(p, sizes, strides);
  p.dtype = dtype;
  rt::audio_cross_attention(p, isa, threads);
  return out;
}

// All output bytes of some operators on fixed inputs.
Bytes outputs(rt::Isa isa, int threads, rt::DType dtype) {
  Bytes all = normed_and_converted(isa, threads, dtype);
  for (int64_t head_dim : {35, 64}) {
    for (const auto operation : {attended, heard}) {
      const Bytes more = operation(isa, threads, dtype, head_dim);
      all.insert(all.end(), more.begin(), more.end());
    }
  }
  return all;
}

void test_pages_keep_their_bytes() {
  std::vector<unsigned char> bytes(3 << 20, 7);
  rt::prefer_huge_pages(bytes.data() + 5, (2 << 20) + 11);
  rt::prefer_huge_pages(bytes.data(), 0);
  check(bytes == std::vector<unsigned char>(3 << 20, 7), "advice changes nothing");
}

void test_instruction_sets_agree() {
  for (rt::DType dtype : {rt::DType::kFloat32, rt::DType::kBFloat16}) {
    const auto expected = outputs(rt::Isa::kPlain, 1, dtype);
    for (rt::Isa isa : {rt::Isa::kPlain, rt::Isa::kAvx2, rt::Isa::kAvx512, rt::Isa::kAvx512Bf16}) {
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
  test_pages_keep_their_bytes();
  std::printf(g_failures ? "%d failures\n" : "ok\n", g_failures);
  return g_failures ? 1 : 0;
}
