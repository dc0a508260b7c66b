// The solution of exercises/08_missing_r.h.
//
// ds = alpha dy B lacked its 1 / R. What goes through ds, dA and the adapter's part of dx, was R
// times too large; dB was right. AdamW's update hardly depends on a gradient's size, so a wrong
// factor of dA alone would not even show in the loss.
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
    backend.matmul_nn(ds, GradMode::Write, scale, dy, b.compute());
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
