#include "autograd/ops.h"
#include "autograd/ops/by_head.h"
#include "autograd/work.h"

namespace lk {
namespace {

// dx = rstd * (g - xhat * mean(g * xhat)), g = dy * gain, xhat = x * rstd. There is no dgain: the
// gain is frozen. Saves rstd (T * heads) and its input x; y is not needed.
struct RmsNormNode : Node {
  Var x;
  Weight gain;
  Tensor rstd;
  RmsNormNode(const Var& x, const Weight& gain, Tensor rstd)
      : x(x), gain(gain), rstd(std::move(rstd)) {}
  const char* name() const override { return "rmsnorm"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x)) {
      const std::int64_t D = gain.shape()[0];
      tape.backend().rmsnorm_backward(by_head(dx.tensor, D), dx.mode,
                                      by_head(dy.cols() == D ? dy : dense(dy), D),
                                      by_head(x.value(), D), gain, rstd);
    }
  }
};

}  // namespace

// y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + eps); the mean is over all columns or over each
// head's
Var rmsnorm(Tape& tape, const Var& x, const Weight& gain, double eps) {
  auto [T, C] = x.dims<2>("rmsnorm: x (T,C)");
  check(gain.shape().rank() == 1, "rmsnorm: gain (C), or (D) for each head");
  const std::int64_t D = gain.shape()[0];
  check(D > 0 && C % D == 0, "rmsnorm: x has ", C, " columns, the gain ", D);
  check(C == D || x.value().contiguous(), "rmsnorm by head: the rows of x must be adjacent");
  Tensor y = tape.activation(x.dtype(), {T, C});
  Tensor rstd = tape.activation(stat_dtype(x.dtype()), {T * (C / D)});
  tape.backend().rmsnorm_forward(by_head(y, D), rstd, by_head(x.value(), D), gain, eps);
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<RmsNormNode>(std::move(y), x, gain, std::move(rstd));
}

namespace {

// dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), g = dy * gain, xhat = (x - mean) * rstd. Saves
// mean and rstd (T) and its input x.
struct LayerNormNode : Node {
  Var x;
  Weight gain;
  Tensor mean, rstd;
  LayerNormNode(const Var& x, const Weight& gain, Tensor mean, Tensor rstd)
      : x(x), gain(gain), mean(std::move(mean)), rstd(std::move(rstd)) {}
  const char* name() const override { return "layernorm"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x))
      tape.backend().layernorm_backward(dx.tensor, dx.mode, dy, x.value(), gain, mean, rstd);
  }
};

}  // namespace

// y = (x - mean) * rstd * gain + bias, rstd = 1 / sqrt(variance + eps)
Var layernorm(Tape& tape, const Var& x, const Weight& gain, const Weight& bias, double eps) {
  auto [T, C] = x.dims<2>("layernorm: x (T,C)");
  gain.expect({C}, "layernorm: gain (C)");
  bias.expect({C}, "layernorm: bias (C)");
  const DType stat = stat_dtype(x.dtype());
  Tensor y = tape.activation(x.dtype(), {T, C});
  Tensor mean = tape.activation(stat, {T}), rstd = tape.activation(stat, {T});
  tape.backend().layernorm_forward(y, mean, rstd, x.value(), gain, bias, eps);
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<LayerNormNode>(std::move(y), x, gain, std::move(mean), std::move(rstd));
}

Work work::rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x, const Weight&,
                           double) {
  return {OpFamily::Norm, 0, sizes(y, rstd, x)};
}

Work work::rmsnorm_backward(const Tensor& dx, GradMode mode, const Tensor& dy, const Tensor& x,
                            const Weight&, const Tensor& rstd) {
  return {OpFamily::Norm, 0, sizes(dy, x, rstd) + written(dx, mode)};
}

Work work::layernorm_forward(const Tensor& y, const Tensor& mean, const Tensor& rstd,
                             const Tensor& x, const Weight&, const Weight&, double) {
  return {OpFamily::Norm, 0, sizes(y, mean, rstd, x)};
}

Work work::layernorm_backward(const Tensor& dx, GradMode mode, const Tensor& dy, const Tensor& x,
                              const Weight&, const Tensor& mean, const Tensor& rstd) {
  return {OpFamily::Norm, 0, sizes(dy, x, mean, rstd) + written(dx, mode)};
}

}  // namespace lk
