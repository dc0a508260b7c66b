#include "autograd/ops.h"

namespace lk {
namespace {

// dx = dy gelu'(x). Saves x.
struct GeluNode : Node {
  Var x;
  explicit GeluNode(const Var& x) : x(x) {}
  const char* name() const override { return "gelu"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x)) tape.backend().gelu_backward(dx.tensor, dx.mode, dy, x.value());
  }
};

}  // namespace

// y = gelu(x)
Var gelu(Tape& tape, const Var& x) {
  auto [T, F] = x.dims<2>("gelu: x (T,F)");
  Tensor y = tape.activation(x.dtype(), {T, F});
  tape.backend().gelu_forward(y, x.value());
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<GeluNode>(std::move(y), x);
}

}  // namespace lk
