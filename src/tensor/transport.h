// Transport: moves tensors between the processes of one run, bit for bit. What is made of them, and in
// which order, is the caller's: no sum is left to a transport.
#pragma once

#include <span>

#include "tensor/tensor.h"

namespace lk {

class Transport {
 public:
  virtual ~Transport() = default;
  struct Piece {
    int peer = 0;   // the other process's rank
    Tensor memory;  // contiguous
  };
  // Sends and receives all pieces at once. Of two processes, what one sends to the other it receives
  // there in the same order and sizes. Work submitted before is seen, and work submitted after sees
  // what came. Throws IoError if a process is gone, or the error that ended it: here, or where the
  // host next waits for the device, which may come to this exchange later.
  virtual void exchange(std::span<const Piece> sends, std::span<const Piece> receives) = 0;
  // Gives up whatever the device still waits for: the run has failed. No exchange() follows.
  virtual void abandon() noexcept {}
};

}  // namespace lk
