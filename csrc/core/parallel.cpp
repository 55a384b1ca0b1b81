// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace skyreels_rt {
namespace {

constexpr int kMaxWorkers = 255;
constexpr int64_t kRangesPerThread = 4;  // enough to balance a late or slow thread

struct Job {
  Job(const RangeFn& fn_, int64_t n_, int64_t range_) : fn(fn_), n(n_), range(range_) {}

  const RangeFn& fn;
  const int64_t n;
  const int64_t range;
  std::atomic<int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(range, std::memory_order_relaxed);
      if (begin >= n) return;
      try {
        fn(begin, std::min(n, begin + range));
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(n, std::memory_order_relaxed);
      }
    }
  }
};

// Workers take ranges from the current job. The caller never waits for a worker that has not
// started: it closes the job when the ranges are gone and waits only for those inside it.
class ThreadPool {
 public:
  bool try_run(Job& job, int helpers) {
    std::unique_lock<std::mutex> owner(busy_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      try {
        while (workers_ < helpers) {
          std::thread([this] { worker_loop(); }).detach();
          ++workers_;
        }
      } catch (const std::system_error&) {
        // The process may have no more threads: the ones that exist do the work.
        helpers = std::min(helpers, workers_);
      }
      job_ = &job;
      wanted_ = helpers;
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    wanted_ = 0;
    done_.wait(lock, [this] { return active_ == 0; });
    return true;
  }

 private:
  void worker_loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++active_;
      Job* job = job_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex busy_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  Job* job_ = nullptr;
  int workers_ = 0;
  int wanted_ = 0;
  int active_ = 0;
};

// Never destroyed: detached workers may still wait in it while the process exits, and after a fork
// the child only forgets it, because its threads and lock states belong to the parent.
std::atomic<ThreadPool*> g_pool{nullptr};
thread_local bool t_inside = false;

ThreadPool& pool() {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { g_pool.store(nullptr, std::memory_order_release); });
  (void)registered;
  ThreadPool* current = g_pool.load(std::memory_order_acquire);
  if (current == nullptr) {
    auto* fresh = new ThreadPool;
    if (g_pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace

void parallel_for(int num_threads, int64_t n, int64_t grain, const RangeFn& fn) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t most = std::min<int64_t>(num_threads, kMaxWorkers + 1);
  const int64_t threads = std::min(most, (n + grain - 1) / grain);
  if (threads <= 1 || t_inside) {
    fn(0, n);
    return;
  }
  Job job(fn, n, std::max(grain, n / (threads * kRangesPerThread)));
  struct Inside {
    Inside() { t_inside = true; }
    ~Inside() { t_inside = false; }
  } inside;
  if (!pool().try_run(job, static_cast<int>(threads) - 1)) job.work();
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace skyreels_rt
