// ThreadScratch: memory of its own for each thread of a parallel region. It is made before the
// region begins, since no exception may leave one: too little memory is then an error like any other.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <memory>

namespace lk::cpu {

class ThreadScratch {
 public:
  // `floats` of them for each thread that the next parallel region may have. Throws std::bad_alloc.
  explicit ThreadScratch(std::int64_t floats)
      : floats_(floats),
        stride_((floats + kLine - 1) / kLine * kLine),
        all_(std::make_unique_for_overwrite<float[]>(
            static_cast<std::size_t>(stride_ * omp_get_max_threads()))) {}
  // The calling thread's floats, set to zero.
  float* mine() {
    float* own = all_.get() + omp_get_thread_num() * stride_;
    std::fill_n(own, floats_, 0.0f);
    return own;
  }

 private:
  static constexpr std::int64_t kLine = 32;  // two cache lines: threads do not write side by side
  std::int64_t floats_, stride_;
  std::unique_ptr<float[]> all_;
};

}  // namespace lk::cpu
