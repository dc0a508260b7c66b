// DeviceClock: when the device finished what, in its own order of work.
//
// A host clock around a call measures a GPU's queue, not its work. mark() takes its place in the
// queue instead, costs about a microsecond, and waits for nothing.
#pragma once

#include <vector>

namespace lk {

class DeviceClock {
 public:
  virtual ~DeviceClock() = default;
  // Marks the moment at which all work submitted so far is done.
  virtual void mark() = 0;
  // Seconds from the first mark to each mark, in order. Waits for the last one, then forgets all.
  virtual std::vector<double> read() = 0;
};

}  // namespace lk
