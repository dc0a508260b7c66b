// Work on ranges of [0, n) by all threads of the host.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>

namespace lk {

// Threads that share such work: more move bytes no faster, and each has buffers of its own.
inline int part_threads() { return std::min(omp_get_max_threads(), 16); }

// Runs f(begin, end) for the ranges of `step` elements that cover [0, n), on part_threads() threads
// if there is more than one range. Rethrows the first exception; ranges not begun by then are left
// out.
template <class F>
void for_parts(std::int64_t n, std::int64_t step, const F& f) {
  std::exception_ptr failure;
  bool failed = false;
#pragma omp parallel for schedule(dynamic) if (n > step) num_threads(part_threads())
  for (std::int64_t begin = 0; begin < n; begin += step) {
    bool stop = false;
#pragma omp atomic read
    stop = failed;
    if (stop) continue;
    try {
      f(begin, std::min(begin + step, n));
    } catch (...) {
#pragma omp critical(lk_parts)
      if (!failure) failure = std::current_exception();
#pragma omp atomic write
      failed = true;
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// Bytes that one thread moves between host and device at a time: small enough that a tensor gives
// all threads work, large enough for the link.
inline constexpr std::int64_t kPartBytes = std::int64_t{1} << 20;

// How many units of `unit_bytes` make a part; at least one.
inline std::int64_t units_per_part(std::size_t unit_bytes) {
  return std::max<std::int64_t>(1, kPartBytes / static_cast<std::int64_t>(unit_bytes));
}

}  // namespace lk
