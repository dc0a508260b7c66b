// Checkpoints of autograd: values that backward makes again instead of keeping them. See Note
// [Recompute ladder] in nn/recompute.h for what uses them.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "autograd/tape.h"
#include "tensor/host_copy.h"

namespace lk {

// Inputs of checkpoints that wait in host memory, in the order of the forward. While one block runs
// backward, the input of the block before it is on its way.
class Offloads {
 public:
  explicit Offloads(Backend& backend) : backend_(backend) {}
  static constexpr std::size_t kNone = SIZE_MAX;
  // Starts the next checkpoint of the forward. Returns the number that the previous checkpoint
  // sent, or kNone.
  std::size_t begin_checkpoint() { return std::exchange(newest_, kNone); }
  // Starts to copy x to the host and returns its number. Call finish() before x may be freed.
  std::size_t send(const Tensor& x);
  void finish(std::size_t i) { slots_.at(i).copy->sent(); }
  // Starts to bring input i back, unless it is on its way.
  void prefetch(std::size_t i);
  // Returns input i, on the device again. Call it once for each i.
  Tensor take(std::size_t i);

 private:
  struct Slot {
    std::unique_ptr<HostCopy> copy;
    DType dtype;
    Shape shape;
    std::int64_t margin;
    Tensor back;
  };
  Backend& backend_;
  std::vector<Slot> slots_;
  std::size_t newest_ = kNone;  // what the latest checkpoint sent
};

struct CheckpointOptions {
  bool trains = true;  // f uses Parameters: it has a backward even if x needs no gradient
  std::shared_ptr<Offloads> offloads = nullptr;  // those of this forward, or null
  bool offload = false;                          // send x to the offloads
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
