// Recording: work that was submitted once and can be run again as one, on the same memory. Made by
// Backend::record(); the Backend outlives it.
#pragma once

#include <functional>

namespace lk {

class Recording {
 public:
  virtual ~Recording() = default;
  // Submits the work.
  virtual void run() = 0;
  // Runs other work now, in the memory that was set apart for this recording. The work must leave
  // nothing there.
  virtual void run_beside(const std::function<void()>& other) = 0;
};

}  // namespace lk
