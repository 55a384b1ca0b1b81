// SPDX-License-Identifier: Apache-2.0
#include "skyreels_rt/parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace skyreels_rt {
namespace {

constexpr int kMaxWorkers = 255;
constexpr int64_t kRangesPerThread = 4;  // enough to balance a late or slow thread

// Inside a range of any job: what is called from there runs serially.
thread_local bool t_inside = false;

// Ranges begin at a share of each thread's own, so that it meets again what an operator before left
// in its cache; a thread that is done helps the others.
struct Job {
  Job(const RangeFn& fn_, int64_t n_, int64_t range_, int64_t threads)
      : fn(fn_), n(n_), range(range_), shares(static_cast<size_t>(threads)) {
    const int64_t ranges = (n + range - 1) / range;
    for (int64_t i = 0; i < threads; ++i) {
      shares[i].next = i * ranges / threads;
      shares[i].end = (i + 1) * ranges / threads;
    }
  }

  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  const RangeFn& fn;
  const int64_t n;
  const int64_t range;
  std::vector<Share> shares;
  std::atomic<int> arrived{0};
  std::atomic<bool> failed{false};
  std::mutex error_mutex;
  std::exception_ptr error;

  void work(int member) {
    t_inside = true;
    for (size_t i = 0; i < shares.size(); ++i) {
      Share& share = shares[(static_cast<size_t>(member) + i) % shares.size()];
      for (;;) {
        const int64_t index = share.next.fetch_add(1, std::memory_order_relaxed);
        if (index >= share.end || failed.load(std::memory_order_relaxed)) break;
        run(index * range);
      }
    }
    t_inside = false;
  }

  void run(int64_t begin) {
    try {
      fn(begin, std::min(n, begin + range));
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
      failed.store(true, std::memory_order_relaxed);
    }
  }
};

// The OpenMP runtime that the process already has (torch puts its own into the global scope). Its
// threads are awake between torch's operators; threads of our own would wait for the cores on which
// those spin.
struct OpenMp {
  // What GCC calls for "#pragma omp parallel": runs fn(data) on a team of num_threads.
  using Run = void (*)(void (*fn)(void*), void* data, unsigned num_threads, unsigned flags);
  using Number = int (*)();

  const Run run = reinterpret_cast<Run>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  const Number number = reinterpret_cast<Number>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));

  bool found() const { return run != nullptr && number != nullptr; }
};

const OpenMp& openmp() {
  static const OpenMp runtime;
  return runtime;
}

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
    job.work(job.arrived++);
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
      job->work(job->arrived++);
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
std::atomic<bool> g_forked{false};  // the runtime's threads stayed in the parent

[[maybe_unused]] const int g_watch_forks = pthread_atfork(nullptr, nullptr, [] {
  g_forked.store(true, std::memory_order_release);
  g_pool.store(nullptr, std::memory_order_release);
});

ThreadPool& pool() {
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
  Job job(fn, n, std::max(grain, n / (threads * kRangesPerThread)), threads);
  if (openmp().found() && !g_forked.load(std::memory_order_acquire)) {
    // The whole team, also for few ranges: teams of changing size end and start threads.
    const auto work = [](void* data) { static_cast<Job*>(data)->work(openmp().number()); };
    openmp().run(work, &job, static_cast<unsigned>(most), 0);
  } else if (!pool().try_run(job, static_cast<int>(threads) - 1)) {
    job.work(0);
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace skyreels_rt
