#include "team.h"

#include <dlfcn.h>

#include <algorithm>

namespace enrobe {

namespace {

// What GCC makes of `#pragma omp parallel`; LLVM's and Intel's runtimes have it, too.
using Parallel = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

Parallel openmp() {
  for (const char* name : {"libgomp.so.1", "libiomp5.so", "libomp.so"})
    if (void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD))
      if (void* found = dlsym(library, "GOMP_parallel")) return reinterpret_cast<Parallel>(found);
  return nullptr;
}

}  // namespace

void for_each(size_t threads, size_t count, const std::function<void(size_t)>& work) {
  std::atomic<size_t> next{0};
  std::function<void()> all = [&] {
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
  };
  threads = std::min(threads, count);
  if (threads < 2) {
    all();
  } else if (const Parallel parallel = openmp()) {
    parallel([](void* data) { (*static_cast<std::function<void()>*>(data))(); }, &all,
             static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    for (size_t i = 1; i < threads; ++i) others.emplace_back(all);
    all();
    for (auto& other : others) other.join();
  }
}

Pool::Pool(size_t size) : size_(size) {
  for (size_t rank = 1; rank < size; ++rank) threads_.emplace_back([this, rank] { loop(rank); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  start_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Pool::run(const std::function<void(size_t)>& work) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    work_ = &work;
    left_ = size_ - 1;
    ++round_;
  }
  start_.notify_all();
  work(0);
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [this] { return left_ == 0; });
  work_ = nullptr;
}

void Pool::loop(size_t rank) {
  size_t seen = 0;
  for (;;) {
    const std::function<void(size_t)>* work;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      start_.wait(lock, [&] { return stopping_ || round_ != seen; });
      if (stopping_) return;
      seen = round_;
      work = work_;
    }
    (*work)(rank);
    std::lock_guard<std::mutex> lock(mutex_);
    if (--left_ == 0) done_.notify_one();
  }
}

}  // namespace enrobe
