#include "team.h"

namespace enrobe {

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
