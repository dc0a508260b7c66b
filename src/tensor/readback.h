// Readback: a number on its way from the device to the host.
#pragma once

namespace lk {

class Readback {
 public:
  virtual ~Readback() = default;
  virtual bool done() const = 0;  // true if value() would return at once
  virtual double value() = 0;     // waits for it
};

}  // namespace lk
