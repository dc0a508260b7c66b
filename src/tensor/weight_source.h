// WeightSource: brings the numbers of a weight to where it has them, in memory that other weights use in
// turn. A Weight asks it whenever someone asks for its numbers, so nobody reads another weight's.
#pragma once

namespace lk {

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // Work submitted from here on finds the numbers in their place, until a weight of another source that
  // uses the same memory is wanted.
  virtual void want() = 0;
};

}  // namespace lk
