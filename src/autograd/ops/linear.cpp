#include <algorithm>

#include "autograd/trained.h"
#include "autograd/work.h"
#include "tensor/dense_scratch.h"

namespace lk {
namespace {

// dx = dy w. There is no dw and no dbias: w and bias are frozen, so the node saves no activation.
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

// y = alpha x wᵀ. The node refers to w, which must stay where it is until the tape has run.
Var linear(Tape& tape, const Var& x, Parameter& w, double alpha) {
  auto [T, K] = x.dims<2>("linear: x (T,K)");
  auto [N, width] = w.value().dims<2>("linear: w (N,K)");
  check(width == K, "linear: w ", w.name(), " is ", w.shape(), ", x has ", K, " columns");
  Tensor y = tape.activation(x.dtype(), {T, N});
  tape.backend().matmul_nt(y, GradMode::Write, alpha, x.value(), w.compute());
  if (!tape.wants(x, w)) return tape.constant(std::move(y));
  return tape.record<TrainableLinearNode>(std::move(y), x, w, alpha);
}

// y = x wᵀ + bias
Var linear(Tape& tape, const Var& x, Parameter& w, Parameter* bias) {
  Var y = linear(tape, x, w, 1.0);
  return bias ? add_bias(tape, y, *bias) : y;
}

namespace {

// c (M,N) from a contraction of length K.
Work product(OpFamily family, const Tensor& c, GradMode mode, const Tensor& a, const Tensor& b,
             std::int64_t K) {
  return {family, 2 * work::numel(c) * static_cast<double>(K),
          work::sizes(a, b) + work::written(c, mode)};
}
// A frozen matrix with LoRA's factors next to it (joined.h) is recognised by its size.
OpFamily family_of(const Tensor& c, const Tensor& b) {
  return std::min({c.cols(), b.rows(), b.cols()}) > 128 ? OpFamily::BaseLinear : OpFamily::Lora;
}

}  // namespace

Work work::linear_forward(const Tensor& y, const Tensor& x, const Weight& w) {
  Work work = product(OpFamily::BaseLinear, y, GradMode::Write, x, {}, w.shape()[1]);
  work.bytes += stored_bytes(w);
  return work;
}

Work work::linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy, const Weight& w) {
  Work work = product(OpFamily::BaseLinear, dx, mode, dy, {}, w.shape()[0]);
  work.bytes += stored_bytes(w);
  return work;
}

Work work::matmul_nt(const Tensor& c, GradMode mode, double, const Tensor& a, const Tensor& b,
                     const Tensor& addend) {
  Work w = product(family_of(c, b), c, mode, a, b, a.cols());
  w.bytes += size(addend);
  return w;
}

Work work::matmul_nn(const Tensor& c, GradMode mode, double, const Tensor& a, const Tensor& b) {
  return product(family_of(c, b), c, mode, a, b, a.cols());
}

Work work::weight_gradient(const Tensor& dw, GradMode mode, double, const Tensor& a,
                           const Tensor& b) {
  return product(OpFamily::Lora, dw, mode, a, b, a.rows());
}

}  // namespace lk
