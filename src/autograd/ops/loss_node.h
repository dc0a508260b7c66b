// The node of a loss whose derivative was made by its forward.
#pragma once

#include "autograd/tape.h"

namespace lk {

// dloss/dx is kept; what is left is the factor from upstream, a scalar on the device (1 at the end
// of a tape: exact). The loss is F32 where x is BF16; so is dy.
struct LossNode : Node {
  Edge x;
  Tensor loss_dx;
  LossNode(Edge x, Tensor loss_dx) : x(x), loss_dx(std::move(loss_dx)) {}
  const char* name() const override { return "loss"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x)) tape.backend().scale(dx.tensor, dx.mode, 1.0, dy, loss_dx);
  }
};

}  // namespace lk
