// Recording: work that was submitted once and can be run again as one, on the same memory. Made by
// Backend::record(), which its Backend outlives.
#pragma once

namespace lk {

class Recording {
 public:
  virtual ~Recording() = default;
  // Submits the work.
  virtual void run() = 0;
};

}  // namespace lk
