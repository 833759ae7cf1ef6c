// Threads that work through one call together, and wait for each other by spinning.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace enrobe {

// Whether something came to be while the processor was kept busy: some 20 to 60 microseconds.
template <typename Done>
bool spin(Done done) {
  for (size_t turns = 0; turns < 1000; ++turns) {
    if (done()) return true;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }
  return done();
}

// Some threads that all run the same code. Two steps that depend on each other have a `wait` between
// them; of a step, each thread takes what is next, since one core may be slower than another by far.
class Team {
 public:
  explicit Team(size_t size) : size_(size) {}
  size_t size() const { return size_; }

  void wait() {
    if (size_ == 1) return;
    const size_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    const auto through = [&] { return round_.load(std::memory_order_acquire) != round; };
    // A step takes some microseconds. What takes longer has been put aside by the system, perhaps for
    // this thread.
    if (!spin(through))
      while (!through()) std::this_thread::yield();
  }

  // work(0) to work(count - 1), of which a thread takes so many at a time; all threads are through when
  // it returns.
  template <typename Work>
  void each(size_t count, size_t at_a_time, Work work) {
    if (size_ == 1) {
      for (size_t i = 0; i < count; ++i) work(i);
      return;
    }
    for (size_t i; (i = next_.fetch_add(at_a_time, std::memory_order_relaxed)) < count;)
      for (size_t last = i + at_a_time; i < last && i < count; ++i) work(i);
    wait();
  }

 private:
  const size_t size_;
  std::atomic<size_t> arrived_{0}, round_{0}, next_{0};
};

// Threads that are kept from call to call; the caller's is one of them.
class Pool {
 public:
  explicit Pool(size_t size);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  size_t size() const { return size_; }
  // work(rank) in every thread, 0 to size - 1; returns when all are through. Work must not throw.
  void run(const std::function<void(size_t)>& work);

 private:
  void loop(size_t rank);
  void spread_out();
  const size_t size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  const std::function<void(size_t)>* work_ = nullptr;
  size_t round_ = 0;
  std::atomic<size_t> left_{0};
  bool stopping_ = false;
#if defined(__linux__)
  cpu_set_t taken_;  // by the threads that have begun
#endif
};

// work(0) to work(count - 1), in any order, in so many threads. Where torch has brought an OpenMP runtime
// into the process those are its threads: they spin for a while after each of torch's steps, and would
// be in the way of others. Work must not throw.
void for_each(size_t threads, size_t count, const std::function<void(size_t)>& work);

// The same with the threads chosen before.
using Each = std::function<void(size_t count, const std::function<void(size_t)>& work)>;
inline Each in_threads(size_t threads) {
  return [threads](size_t count, const std::function<void(size_t)>& work) {
    for_each(threads, count, work);
  };
}

}  // namespace enrobe
