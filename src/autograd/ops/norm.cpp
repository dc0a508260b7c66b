#include "autograd/ops.h"

namespace lk {
namespace {

// dx = rstd * (g - xhat * mean(g * xhat)), g = dy * gain, xhat = x * rstd. There is no dgain: it
// is frozen. Saves rstd (T) and its input x; y is not needed.
struct RmsNormNode : Node {
  Var x;
  Weight gain;
  Tensor rstd;
  RmsNormNode(const Var& x, const Weight& gain, Tensor rstd)
      : x(x), gain(gain), rstd(std::move(rstd)) {}
  const char* name() const override { return "rmsnorm"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x))
      tape.backend().rmsnorm_backward(dx.tensor, dx.mode, dy, x.value(), gain, rstd);
  }
};

}  // namespace

// y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + eps)
Var rmsnorm(Tape& tape, const Var& x, const Weight& gain, double eps) {
  auto [T, C] = x.dims<2>("rmsnorm: x (T,C)");
  gain.expect({C}, "rmsnorm: gain (C)");
  Tensor y = tape.activation(x.dtype(), {T, C}), rstd = tape.activation(stat_dtype(x.dtype()), {T});
  tape.backend().rmsnorm_forward(y, rstd, x.value(), gain, eps);
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<RmsNormNode>(std::move(y), x, gain, std::move(rstd));
}

}  // namespace lk
