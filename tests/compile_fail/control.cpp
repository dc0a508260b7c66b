// Must compile: every line that a snippet of this folder gets wrong, with the right types.
#include "autograd/trained.h"
#include "lora/lora_linear.h"
#include "nn/adamw.h"

namespace lk {

Tensor control(Tape& tape, const Weight& w, Parameter& p, const Tensor& t, const Var& x) {
  Parameter made("p", t, DType::F32);
  Var constant(t), leaf = tape.leaf(t);
  Var frozen = linear(tape, x, w), trained = linear(tape, x, p, 2.0);
  Var adapted = lora_linear(tape, x, w, nullptr, p, p, 1.0, 0.0f, {});
  Var scaled = scale_columns(tape, x, p);
  x.backend().linear_forward(t, t, w);
  Sink dx = tape.sink(x), dp = p.sink();
  tape.pass(x, t);
  x.backend().weight_gradient(dp.tensor, dp.mode, 1.0, t, t);
  AdamW adamw(std::vector<Parameter*>{&p}, AdamWConfig{});
  Tensor weights = x.backend().empty(Tag::Weights, DType::F32, {1});
  return p.grad();
}

}  // namespace lk
