// HostCopy: a tensor's bytes on their way to host memory and back, concurrent with the device's
// other work. Made by Backend::offload(); the Backend outlives it.
#pragma once

namespace lk {

class Tensor;

class HostCopy {
 public:
  virtual ~HostCopy() = default;
  // Work submitted from here on may overwrite what was copied.
  virtual void sent() = 0;
  // Starts the copy back into `to`, a tensor of the same shape, dtype and margin, once the work
  // submitted so far is done. Call it after sent(), as often as the bytes are needed. Copies back into
  // the same memory follow each other, so one that nobody waits for may be followed by another's.
  virtual void fetch(const Tensor& to) = 0;
  // Work submitted from here on finds the bytes in the tensor given to the last fetch().
  virtual void arrived() = 0;
};

}  // namespace lk
