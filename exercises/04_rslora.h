// 4. Add rsLoRA.
//
// A LoRA layer is y = x Wᵀ + s (x Aᵀ) Bᵀ with s = alpha / R. Rank-stabilised LoRA (Kalajdzievski
// 2023) has s = alpha / sqrt(R). Write the layer, with both, from the ops of autograd/ops.h; what
// is a composition of differentiable functions needs no backward of its own.
//
// Hints
// - linear(tape, x, w) takes a frozen Weight; linear(tape, x, p, factor) a Parameter, and
//   multiplies.
// - add(tape, a, b) is their sum.
// - Three ops are enough, four if you like. Never make B A: it has as many numbers as W.
// - The test measures |y - x Wᵀ| for A and B of a fixed size at ranks from 1 to 256. Each element
//   of (x Aᵀ) Bᵀ is a sum of R independent terms, so it grows like sqrt(R), not like R.
#pragma once

#include <cmath>

#include "autograd/ops.h"

namespace lk::exercise {

// x (T,K), w (N,K) frozen, a (R,K) and b (N,R) trainable -> y (T,N)
inline Var lora(Tape& tape, const Var& x, const Weight& w, Parameter& a, Parameter& b, double alpha,
                bool rank_stabilised) {
  // ---- your code ----
  static_cast<void>(a), static_cast<void>(b);
  static_cast<void>(alpha), static_cast<void>(rank_stabilised);
  return linear(tape, x, w);
  // ---- end ----
}

}  // namespace lk::exercise
