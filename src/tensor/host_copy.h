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
  // Starts the copy back into `to`, a tensor of the same shape, dtype and margin. Call it after
  // sent().
  virtual void fetch(const Tensor& to) = 0;
  // Work submitted from here on finds the bytes in the tensor given to fetch().
  virtual void arrived() = 0;
};

}  // namespace lk
