// Readback: a few numbers on their way from the device to the host.
#pragma once

#include <cstddef>

namespace lk {

class Readback {
 public:
  virtual ~Readback() = default;
  virtual bool done() const = 0;            // true if value() would return at once
  virtual double value(std::size_t i) = 0;  // number i; waits for all of them
  double value() { return value(0); }
};

}  // namespace lk
