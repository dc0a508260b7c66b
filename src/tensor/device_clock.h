// DeviceClock: when the device was done with what, in its own order of work.
//
// A host's clock around a call measures a GPU's queue, not its work. mark() takes its place in the
// queue instead, costs about a microsecond, and waits for nothing.
#pragma once

#include <vector>

namespace lk {

class DeviceClock {
 public:
  virtual ~DeviceClock() = default;
  // Notes the moment at which all work submitted so far is done.
  virtual void mark() = 0;
  // Seconds from the first mark to each mark, in order; waits for the last one, then forgets all.
  virtual std::vector<double> read() = 0;
};

}  // namespace lk
