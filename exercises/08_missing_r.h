// 8. Find the missing 1 / R.
//
// In this LoRA layer one 1 / R of s = alpha / R is missing. It compiles, and its forward is right.
// Find the place; it is one word.
//
// Hints
// - Run the first test, and divide "analytic" by "numeric" in its message. Which number is it?
// - Which gradients are wrong, and which are right? Both go through the same dy.
// - With s = x Aᵀ: dB = scale dyᵀ s, ds = scale dy B, dA = dsᵀ x, dx = dy W + ds A.
#pragma once

#include "autograd/tape.h"

namespace lk::exercise {

// ---- your code ----
struct LoraNode : Node {
  Var x;
  Weight w;
  Parameter &a, &b;
  Tensor s;
  double alpha, scale;

  LoraNode(const Var& x_in, const Weight& w_in, Parameter& a_in, Parameter& b_in, Tensor s_in,
           double alpha_in)
      : x(x_in),
        w(w_in),
        a(a_in),
        b(b_in),
        s(std::move(s_in)),
        alpha(alpha_in),
        scale(alpha / static_cast<double>(a.shape()[0])) {}
  const char* name() const override { return "lora"; }

  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    Sink db = b.sink(), da = a.sink();
    backend.weight_gradient(db.tensor, db.mode, scale, dy, s);
    Tensor ds = backend.empty(Tag::Backward, dy.dtype(), s.shape());
    backend.matmul_nn(ds, GradMode::Write, alpha, dy, b.compute());
    backend.weight_gradient(da.tensor, da.mode, 1.0, ds, x.value());
    if (Sink dx = tape.sink(x)) {
      backend.linear_backward_x(dx.tensor, dx.mode, dy, w);
      backend.matmul_nn(dx.tensor, GradMode::Add, 1.0, ds, a.compute());
    }
  }
};

// y (T,N) = x (T,K) wᵀ + alpha / R (x aᵀ) bᵀ
inline Var lora(Tape& tape, const Var& x, const Weight& w, Parameter& a, Parameter& b,
                double alpha) {
  Backend& backend = tape.backend();
  const std::int64_t T = x.value().rows(), N = w.shape()[0], R = a.shape()[0];
  Tensor y = tape.activation(x.dtype(), {T, N}), s = tape.activation(x.dtype(), {T, R});
  backend.linear_forward(y, x.value(), w);
  backend.matmul_nt(s, GradMode::Write, 1.0, x.value(), a.compute());
  backend.matmul_nt(y, GradMode::Add, alpha / static_cast<double>(R), s, b.compute());
  if (!tape.wants(x, a, b)) return tape.constant(y);
  return tape.record<LoraNode>(y, x, w, a, b, s, alpha);
}
// ---- end ----

}  // namespace lk::exercise
