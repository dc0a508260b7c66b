#include "autograd/ops.h"

namespace lk {
namespace {

// With s = sigmoid(gate): dup = dy gate s,  dgate = dy up s (1 + gate (1 - s)). Saves the inputs.
struct SwigluNode : Node {
  Var gate, up;
  SwigluNode(const Var& gate, const Var& up) : gate(gate), up(up) {}
  const char* name() const override { return "swiglu"; }
  void backward(Tape& tape, const Tensor& dy) override {
    // The kernel makes both at once and always writes: hand the buffers on by sharing.
    Backend& backend = tape.backend();
    Tensor dgate = backend.empty(Tag::Backward, dy.dtype(), dy.shape());
    Tensor dup = backend.empty(Tag::Backward, dy.dtype(), dy.shape());
    backend.swiglu_backward({}, dgate, dup, dy, gate.value(), up.value());
    tape.pass(gate, dgate);
    tape.pass(up, dup);
  }
};

// The same with gelu for silu.
struct GegluNode : Node {
  Var gate, up;
  GegluNode(const Var& gate, const Var& up) : gate(gate), up(up) {}
  const char* name() const override { return "geglu"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    Tensor dgate = backend.empty(Tag::Backward, dy.dtype(), dy.shape());
    Tensor dup = backend.empty(Tag::Backward, dy.dtype(), dy.shape());
    backend.geglu_backward(dgate, dup, dy, gate.value(), up.value());
    tape.pass(gate, dgate);
    tape.pass(up, dup);
  }
};

}  // namespace

// y = silu(gate) * up
Var swiglu(Tape& tape, const Var& gate, const Var& up) {
  auto [T, F] = gate.dims<2>("swiglu: gate (T,F)");
  up.value().expect({T, F}, "swiglu: up (T,F)");
  Tensor y = tape.activation(gate.dtype(), {T, F});
  tape.backend().swiglu_forward(y, gate.value(), up.value());
  if (!tape.wants(gate, up)) return tape.constant(std::move(y));
  return tape.record<SwigluNode>(std::move(y), gate, up);
}

// y = gelu(gate) * up
Var geglu(Tape& tape, const Var& gate, const Var& up) {
  auto [T, F] = gate.dims<2>("geglu: gate (T,F)");
  up.value().expect({T, F}, "geglu: up (T,F)");
  Tensor y = tape.activation(gate.dtype(), {T, F});
  tape.backend().geglu_forward(y, gate.value(), up.value());
  if (!tape.wants(gate, up)) return tape.constant(std::move(y));
  return tape.record<GegluNode>(std::move(y), gate, up);
}

}  // namespace lk
