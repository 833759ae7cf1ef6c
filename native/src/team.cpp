#include "team.h"

#include <dlfcn.h>

#include <algorithm>

namespace enrobe {

namespace {

// What GCC makes of `#pragma omp parallel`, and which of the threads this is; LLVM's and Intel's
// runtimes have them, too.
struct OpenMP {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*rank)() = nullptr;
};

OpenMP openmp() {
  static OpenMP found;
  if (found.rank) return found;
  for (const char* name : {"libgomp.so.1", "libiomp5.so", "libomp.so"})
    if (void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD)) {
      found.parallel = reinterpret_cast<decltype(found.parallel)>(dlsym(library, "GOMP_parallel"));
      found.rank = reinterpret_cast<decltype(found.rank)>(dlsym(library, "omp_get_thread_num"));
      if (found.parallel && found.rank) return found;
    }
  return {};
}

// What a thread is to do, from the first on. Each share is on a line of its own.
struct alignas(64) Share {
  std::atomic<size_t> next;
  size_t last;
};

}  // namespace

void for_each(size_t threads, size_t count, const std::function<void(size_t)>& work) {
  threads = std::min(threads, count);
  if (threads < 2) {
    for (size_t i = 0; i < count; ++i) work(i);
    return;
  }
  std::vector<Share> shares(threads);
  for (size_t rank = 0; rank < threads; ++rank) {
    shares[rank].next.store(rank * count / threads, std::memory_order_relaxed);
    shares[rank].last = (rank + 1) * count / threads;
  }
  std::function<void(size_t)> all = [&](size_t rank) {
    for (size_t turn = 0; turn < threads; ++turn) {
      Share& share = shares[(rank + turn) % threads];
      for (size_t i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.last;) work(i);
    }
  };
  const OpenMP found = openmp();
  if (found.parallel) {
    std::pair<decltype(all)*, decltype(found.rank)> call{&all, found.rank};
    found.parallel(
        [](void* data) {
          const auto& [run, rank] = *static_cast<decltype(call)*>(data);
          (*run)(static_cast<size_t>(rank()));
        },
        &call, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    for (size_t i = 1; i < threads; ++i) others.emplace_back(all, i);
    all(0);
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
#if defined(__linux__)
    CPU_ZERO(&taken_);
#endif
    spread_out();
  }
  start_.notify_all();
  work(0);
  const auto through = [this] { return left_.load(std::memory_order_acquire) == 0; };
  if (spin(through)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, through);
}

// Off a core that another of them has. A thread that is woken in a virtual machine often goes to its
// waker's core, as idle ones are taken for busy, and it may be milliseconds before it is moved.
void Pool::spread_out() {
#if defined(__linux__)
  int own = sched_getcpu();
  if (own < 0 || own >= CPU_SETSIZE) return;
  cpu_set_t allowed, free;
  if (CPU_ISSET(own, &taken_) && sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    CPU_XOR(&free, &allowed, &taken_);
    CPU_AND(&free, &free, &allowed);
    if (CPU_COUNT(&free) && sched_setaffinity(0, sizeof free, &free) == 0) {
      own = sched_getcpu();
      sched_setaffinity(0, sizeof allowed, &allowed);
    }
  }
  CPU_SET(own, &taken_);
#endif
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
      spread_out();
    }
    (*work)(rank);
    std::lock_guard<std::mutex> lock(mutex_);
    if (--left_ == 0) done_.notify_one();
  }
}

}  // namespace enrobe
