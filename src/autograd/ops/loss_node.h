// The node of a loss whose forward computes the derivative as well.
#pragma once

#include "autograd/tape.h"

namespace lk {

// Keeps dloss/dx; backward multiplies it with the factor from upstream, a scalar on the device (1
// at the end of a tape, which is exact). Loss and dy are F32 where x is BF16.
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
