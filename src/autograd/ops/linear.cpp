#include "autograd/ops.h"

namespace lk {
namespace {

// dx = dy w. There is no dw and no dbias: both are frozen. So nothing of the forward is saved.
struct FrozenLinearNode : Node {
  Edge x;
  Weight w;
  FrozenLinearNode(Edge x, const Weight& w) : x(x), w(w) {}
  const char* name() const override { return "frozen_linear"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x)) tape.backend().linear_backward_x(dx.tensor, dx.mode, dy, w);
  }
};

}  // namespace

// y = x wᵀ + bias
Var linear(Tape& tape, const Var& x, const Weight& w, const Weight* bias, Output output) {
  auto [T, K] = x.dims<2>("linear: x (T,K)");
  check(w.defined() && w.shape().rank() == 2, "linear: w (N,K) is missing");
  const std::int64_t N = w.shape()[0];
  w.expect({N, K}, "linear: w (N,K)");
  Tensor y = tape.activation(x.dtype(), {T, N});
  if (bias) bias->expect({N}, "linear: bias (N)");
  if (output == Output::Read) {
    tape.backend().linear_forward(y, x.value(), w);
    if (bias) tape.backend().add_bias(y, *bias);
  }
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<FrozenLinearNode>(std::move(y), x, w);
}

namespace {

// dw = alpha dyᵀ x,  dx = alpha dy w
struct TrainableLinearNode : Node {
  Var x;
  Parameter& w;
  double alpha;
  TrainableLinearNode(const Var& x, Parameter& w, double alpha) : x(x), w(w), alpha(alpha) {}
  const char* name() const override { return "trainable_linear"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    Sink dw = w.sink();
    backend.weight_gradient(dw.tensor, dw.mode, alpha, dy, x.value());
    if (Sink dx = tape.sink(x)) backend.matmul_nn(dx.tensor, dx.mode, alpha, dy, w.compute());
  }
};

}  // namespace

// y = alpha x wᵀ. The node refers to w, which must stay where it is until the tape ran.
Var linear(Tape& tape, const Var& x, Parameter& w, double alpha) {
  auto [T, K] = x.dims<2>("linear: x (T,K)");
  auto [N, width] = w.value().dims<2>("linear: w (N,K)");
  check(width == K, "linear: w ", w.name(), " is ", w.shape().str(), ", x has ", K, " columns");
  Tensor y = tape.activation(x.dtype(), {T, N});
  tape.backend().matmul_nt(y, GradMode::Write, alpha, x.value(), w.compute());
  if (!tape.wants(x, w)) return tape.constant(std::move(y));
  return tape.record<TrainableLinearNode>(std::move(y), x, w, alpha);
}

}  // namespace lk
