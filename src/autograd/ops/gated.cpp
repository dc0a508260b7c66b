#include "autograd/trained.h"
#include "autograd/work.h"

namespace lk {
namespace {

// With act(g) = g s and s = sigmoid(z(g)): dup = dy act(gate), dgate = dy up act'(gate). Saves both
// inputs.
struct GatedNode : Node {
  Activation act;
  Var gate, up;
  GatedNode(Activation act, const Var& gate, const Var& up) : act(act), gate(gate), up(up) {}
  const char* name() const override { return act == Activation::Silu ? "swiglu" : "geglu"; }
  void backward(Tape& tape, const Tensor& dy) override {
    // The kernel makes dgate and dup at once and always writes: pass the buffers on by sharing.
    Backend& backend = tape.backend();
    Tensor dgate = backend.empty(Tag::Backward, dy.dtype(), dy.shape());
    Tensor dup = backend.empty(Tag::Backward, dy.dtype(), dy.shape());
    backend.gated_backward(act, {}, dgate, GradMode::Write, dup, dy, gate.value(), up.value());
    tape.pass(gate, dgate);
    tape.pass(up, dup);
  }
};

// dx = dy act'(x). Saves x.
struct ActivationNode : Node {
  Activation act;
  Var x;
  ActivationNode(Activation act, const Var& x) : act(act), x(x) {}
  const char* name() const override {
    return act == Activation::Gelu ? "gelu" : act == Activation::Silu ? "silu" : "relu";
  }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x))
      tape.backend().gated_backward(act, {}, dx.tensor, dx.mode, {}, dy, x.value(), {});
  }
};

Var gated(Tape& tape, Activation act, const Var& gate, const Var& up) {
  const bool silu = act == Activation::Silu;
  auto [T, F] = gate.dims<2>(silu ? "swiglu: gate (T,F)" : "geglu: gate (T,F)");
  up.value().expect({T, F}, silu ? "swiglu: up (T,F)" : "geglu: up (T,F)");
  Tensor y = tape.activation(gate.dtype(), {T, F});
  tape.backend().gated_forward(act, y, gate.value(), up.value());
  if (!tape.wants(gate, up)) return tape.constant(std::move(y));
  return tape.record<GatedNode>(std::move(y), act, gate, up);
}

}  // namespace

// y = silu(gate) * up
Var swiglu(Tape& tape, const Var& gate, const Var& up) {
  return gated(tape, Activation::Silu, gate, up);
}

// y = gelu(gate) * up
Var geglu(Tape& tape, const Var& gate, const Var& up) {
  return gated(tape, Activation::Gelu, gate, up);
}

// y = act(x)
Var activation(Tape& tape, Activation act, const Var& x) {
  auto [T, F] = x.dims<2>("activation: x (T,F)");
  Tensor y = tape.activation(x.dtype(), {T, F});
  tape.backend().gated_forward(act, y, x.value(), {});
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<ActivationNode>(std::move(y), act, x);
}

// y = gelu(x)
Var gelu(Tape& tape, const Var& x) { return activation(tape, Activation::Gelu, x); }

Work work::gated_forward(Activation, const Tensor& y, const Tensor& gate, const Tensor& up) {
  return {OpFamily::Gated, 0, sizes(y, gate, up)};
}

Work work::gated_backward(Activation, const Tensor& y, const Tensor& dgate, GradMode mode,
                          const Tensor& dup, const Tensor& dy, const Tensor& gate,
                          const Tensor& up) {
  return {OpFamily::Gated, 0, sizes(y, dup, dy, gate, up) + written(dgate, mode)};
}

}  // namespace lk
