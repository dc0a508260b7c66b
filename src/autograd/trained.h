// Differentiable functions that methods beside LoRA need: vectors, tables and heads that train, and
// what stands around them. See autograd/ops.h, where the same functions of frozen values are.
#pragma once

#include "autograd/ops.h"

namespace lk {

// x (T,C) = table[ids]; table (V,C) trainable. Learned positions are such a table too.
Var embedding(Tape& tape, Parameter& table, const Tensor& ids, std::int64_t margin = 0);

// y (T,N) = x (T,K) wᵀ + bias; w (N,K) and bias (N) trainable, bias may be null
Var linear(Tape& tape, const Var& x, Parameter& w, Parameter* bias);
// y (T,N) = x * l in every row; l (N) trainable
Var scale_columns(Tape& tape, const Var& x, Parameter& l);
// y (T,N) = x + b in every row; b (N) trainable
Var add_bias(Tape& tape, const Var& x, Parameter& b);

// rmsnorm with a trainable gain
Var rmsnorm(Tape& tape, const Var& x, Parameter& gain, double eps);
// layernorm with a trainable bias, and with both trainable
Var layernorm(Tape& tape, const Var& x, const Weight& gain, Parameter& bias, double eps);
Var layernorm(Tape& tape, const Var& x, Parameter& gain, Parameter& bias, double eps);

// y = act(x)
Var activation(Tape& tape, Activation act, const Var& x);
// y = alpha x
Var scaled(Tape& tape, const Var& x, double alpha);

// head_loss with a trainable head, which may be the embedding's table too. dhead is summed chunk by
// chunk, one weight gradient for each; the backward computes the logits again.
Var head_loss(Tape& tape, const Var& x, Parameter& head, const Tensor& targets,
              const LossScale& scale, std::int64_t chunk_rows);
Tensor head_losses(const Tensor& x, const Parameter& head, const Tensor& targets,
                   std::int64_t chunk_rows);

}  // namespace lk
