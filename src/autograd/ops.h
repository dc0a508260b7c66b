// Every differentiable function: one line and its shapes. tensor/backend.h explains the letters.
// Frozen matrices come as Weight, trainable ones as Parameter: the type decides who has a gradient.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "autograd/tape.h"

namespace lk {

// x (T,C) = table[ids]; table (V,C) frozen, ids (T) I32. The result is a constant: nothing before
// it trains. `margin`: columns behind each row of x, see Backend::empty_with_margin.
Var embedding(Tape& tape, const Weight& table, const Tensor& ids, std::int64_t margin = 0);
// y (n,C) = x[rows]; rows (n) I32, distinct
Var gather_rows(Tape& tape, const Var& x, const Tensor& rows);

// y (T,N) = x (T,K) wᵀ + bias; w (N,K) frozen, bias (N) frozen or null
Var linear(Tape& tape, const Var& x, const Weight& w, const Weight* bias = nullptr,
           Output output = Output::Read);
// y (T,N) = alpha x (T,K) wᵀ; w (N,K) trainable
Var linear(Tape& tape, const Var& x, Parameter& w, double alpha = 1.0);

// y = x * rstd * gain; gain (C) frozen. A gain (D) with C = heads * D norms each head's D columns
// separately.
Var rmsnorm(Tape& tape, const Var& x, const Weight& gain, double eps);

// y = (x - mean) * rstd * gain + bias; gain, bias (C) frozen
Var layernorm(Tape& tape, const Var& x, const Weight& gain, const Weight& bias, double eps);

// Rotary positions on every head of x (T, heads*D); table as in Backend::rope.
Var rope(Tape& tape, const Var& x, const Tensor& table, const Tensor& positions, int head_dim);

// Causal attention inside each segment: q (T,H*D), k, v (T,G*D) -> (T,H*D)
Var attention(Tape& tape, const Var& q, const Var& k, const Var& v, const AttentionShape& shape,
              const Segments& segments);
// attention of rope(q), rope(k) and v, which lie side by side in qkv (T,(H+2G)*D) -> (T,H*D) with
// `margin` columns behind its rows. The forward rotates q and k in place: nothing else may read
// qkv's value. With an undefined table nothing is rotated (a model with learned positions).
Var qkv_attention(Tape& tape, const Var& qkv, const Tensor& rope_table, const Tensor& positions,
                  const AttentionShape& shape, const Segments& segments, std::int64_t margin);

// y = silu(gate) * up, all (T,F)
Var swiglu(Tape& tape, const Var& gate, const Var& up);

// y = gelu(gate) * up, all (T,F); gelu's tanh form
Var geglu(Tape& tape, const Var& gate, const Var& up);
// y = gelu(x), tanh form
Var gelu(Tape& tape, const Var& x);

// y = a + b, with a's margin
Var add(Tape& tape, const Var& a, const Var& b, Output output = Output::Read);

// y = x * keep / (1 - p); the mask is Philox(key), never stored. With p = 0 the result is x itself.
Var dropout(Tape& tape, const Var& x, float p, const RandomKey& key);

// The factor of a sum of losses: alpha, times a number on the device, (1) F32 (F64 for F64), if
// `factor` is defined, for recorded work to run with another. `smoothing` is cross_entropy()'s.
struct LossScale {
  double alpha = 1;
  Tensor factor;
  double smoothing = 0;
  LossScale(double alpha = 1, Tensor factor = {}, double smoothing = 0)
      : alpha(alpha), factor(std::move(factor)), smoothing(smoothing) {}
};

// loss (1) = scale * sum_i crossentropy(x_i headᵀ, targets_i); x (n,C), head (V,C) frozen, targets
// (n) I32. A row with the target kNoTarget counts for nothing. Works in chunks of `chunk_rows`, so
// logits (n,V) never exist whole; forward and backward of each chunk are done in one visit and only
// dx is kept. The loss has the statistics' dtype (F32; F64 for F64).
Var head_loss(Tape& tape, const Var& x, const Weight& head, const Tensor& targets,
              const LossScale& scale, std::int64_t chunk_rows);

// The losses (n) of the single rows that head_loss sums. No gradient.
Tensor head_losses(const Tensor& x, const Weight& head, const Tensor& targets,
                   std::int64_t chunk_rows);

// loss (1) = f(x), computed on the host, for a loss that the engine has no ops for: f gets x (n,V)
// row by row as doubles, returns the loss and fills dx, which is zero at first. The loss has the
// statistics' dtype. Waits for the device, so it cannot be recorded.
using HostLoss = std::function<double(std::span<const double> x, std::span<double> dx)>;
Var host_loss(Tape& tape, const Var& x, const HostLoss& f);

}  // namespace lk
