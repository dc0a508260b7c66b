// Values that backward makes again instead of keeping them: see Note [Recompute ladder] in
// nn/recompute.h for what uses it.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "autograd/tape.h"
#include "tensor/host_copy.h"

namespace lk {

// Inputs of checkpoints that wait in host memory, in the order of the forward. While one block runs
// backward the input of the one before it is on its way.
class Offloads {
 public:
  explicit Offloads(Backend& backend) : backend_(backend) {}
  static constexpr std::size_t kNone = SIZE_MAX;
  // The next checkpoint of the forward: the number that the one before it sent, or kNone.
  std::size_t begin_checkpoint() { return std::exchange(newest_, kNone); }
  // Starts to copy x out: its number. finish() before x may go.
  std::size_t send(const Tensor& x);
  void finish(std::size_t i) { slots_.at(i).copy->sent(); }
  // Starts to bring number i back, unless it is on its way.
  void prefetch(std::size_t i);
  // Number i, on the device again; once.
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
  std::shared_ptr<Offloads> offloads = nullptr;  // of this forward, if there are any
  bool offload = false;                          // send x there
};

// The function of a checkpoint, y = f(x). It must compute the same bits again: it may read nothing
// that changes before backward, and draws random numbers by key. What it captures must stay until
// then. On its second run y is unread: the op that makes it may leave it out.
using Recomputed = std::function<Var(Tape&, const Var& x, Output y)>;

// y = f(x). Of all that f makes only x is kept; backward runs f once more, on a tape of its own,
// and that tape backwards.
Var checkpoint(Tape& tape, const Var& x, Recomputed f, const CheckpointOptions& options = {});

}  // namespace lk
