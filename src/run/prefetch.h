// Prefetch: makes items on a thread of its own, a few ahead of their consumer.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "tensor/error.h"

namespace lk {

template <class T>
class Prefetch {
 public:
  // Calls make(i) for i = first .. last - 1 in order on the thread, which waits while `ahead` items
  // are ready. What `make` reads must stay unchanged, and nobody else may touch it.
  Prefetch(std::function<T(std::int64_t)> make, std::int64_t first, std::int64_t last,
           std::size_t ahead)
      : make_(std::move(make)), left_(last - first), ahead_(ahead) {
    thread_ = std::jthread([this, first, last](std::stop_token stop) { run(stop, first, last); });
  }
  // Drops the items not taken; waits for the one being made.
  ~Prefetch() = default;
  Prefetch(const Prefetch&) = delete;
  Prefetch& operator=(const Prefetch&) = delete;

  // The next item. Throws what make() threw, after the items before it were taken.
  T next() {
    check(left_ > 0, "Prefetch: no item left");
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !ready_.empty() || failure_; });
    if (ready_.empty()) std::rethrow_exception(failure_);
    T item = std::move(ready_.front());
    ready_.pop_front();
    --left_;
    changed_.notify_all();
    return item;
  }

 private:
  void run(const std::stop_token& stop, std::int64_t first, std::int64_t last) {
    try {
      for (std::int64_t i = first; i < last; ++i) {
        std::unique_lock lock(mutex_);
        if (!changed_.wait(lock, stop, [&] { return ready_.size() < ahead_; })) return;
        lock.unlock();
        T item = make_(i);
        lock.lock();
        ready_.push_back(std::move(item));
        changed_.notify_all();
      }
    } catch (...) {
      std::lock_guard lock(mutex_);
      failure_ = std::current_exception();
      changed_.notify_all();
    }
  }

  std::function<T(std::int64_t)> make_;
  std::int64_t left_;
  std::size_t ahead_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<T> ready_;
  std::exception_ptr failure_;
  std::jthread thread_;  // last: it stops and joins before what it uses goes away
};

}  // namespace lk
