// Checkpoints of autograd: values that backward makes again instead of keeping them. See Note
// [Recompute ladder] in nn/recompute.h for what uses them.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "autograd/tape.h"
#include "tensor/stored_copy.h"

namespace lk {

// What checkpoints keep in host memory, in the order of the forward. While one block runs backward,
// what the block before it keeps is on its way.
class Offloads {
 public:
  explicit Offloads(Backend& backend) : backend_(backend) {}
  // The numbers of what one checkpoint sent.
  struct Range {
    std::size_t begin = 0, end = 0;
  };
  // Starts the next checkpoint of the forward. Returns what the previous one sent.
  Range begin_checkpoint() { return {std::exchange(newest_, slots_.size()), slots_.size()}; }
  // Starts to copy x to the host and returns its number. Call finish_checkpoint() before x is freed.
  std::size_t send(const Tensor& x);
  void finish_checkpoint();
  // Starts to bring back what of `range` is not on its way.
  void prefetch(Range range);
  // Returns tensor i, on the device again. Call it once for each i.
  Tensor take(std::size_t i);

 private:
  struct Slot {
    std::unique_ptr<StoredCopy> copy;
    Tensor on_device;  // until it has left, and again once it is on its way back
    DType dtype;
    Shape shape;
    std::int64_t margin;
  };
  Backend& backend_;
  std::vector<Slot> slots_;
  std::size_t newest_ = 0;  // the first that the latest checkpoint sent
};

struct CheckpointOptions {
  bool trains = true;  // f uses Parameters: it has a backward even if x needs no gradient
  std::shared_ptr<Offloads> offloads = nullptr;  // those of this forward, or null
  bool offload = false;                          // send what is kept to the offloads
  bool keep_attention = false;                   // keep what attention's forward makes, too
};

// The function of a checkpoint, y = f(x). It must compute the same bits when it runs again, so it
// may read nothing that changes before backward, and it must draw random numbers by key. What it
// captures must stay until then. On the second run y is unread, so the op that makes it may leave
// it out.
using Recomputed = std::function<Var(Tape&, const Var& x, Output y)>;

// y = f(x). Of all that f makes only x is kept, and attention's outputs if that is asked for; backward
// runs f once more, on a tape of its own, and then that tape's backward.
Var checkpoint(Tape& tape, const Var& x, Recomputed f, const CheckpointOptions& options = {});

}  // namespace lk
