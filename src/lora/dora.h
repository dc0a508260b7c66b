// DoRA: y = m / |W + s B A| * (W x + s B A x) + bias, where | | is the norm of every row and a
// constant in backward. Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024,
// section 4.3; names and dropout as in PEFT.
#pragma once

#include <string>

#include "nn/linear_map.h"

namespace lk {

// What DoRA adds to a LoRA layer: the magnitude m, and the norms that it is divided by.
class Dora {
 public:
  // m starts as the norms of W's rows. `path` is the module's.
  Dora(Backend& backend, const std::string& path, const FrozenLinear& base, DType compute_dtype);

  Var apply(Tape& tape, const Var& x, const FrozenLinear& base, Parameter& a, Parameter& b,
            double scale, float dropout, const RandomKey& key, Output output);
  // y (T,N) = W x + bias + s B A x becomes DoRA's y.
  void adapt(const Tensor& y, const FrozenLinear& base, const Parameter& a, const Parameter& b,
             double scale);

  Parameter& magnitude() { return m_; }
  const Parameter& magnitude() const { return m_; }
  const Tensor& w_sq() const { return w_sq_; }
  // 1 / the norms, for whoever computes them: a joined projection (autograd/joined.h) does.
  const Tensor& inverse() const { return inverse_; }

 private:
  void update_norms(const FrozenLinear& base, const Parameter& a, const Parameter& b, double scale);

  Tensor w_sq_, inverse_;                        // (N): |row of W|^2, and 1 / |row of W + s B A|
  Parameter m_;                                  // (N)
  std::uint64_t a_version_ = 0, b_version_ = 0;  // of the factors that inverse_ is of; 0: none
};

// inverse (N) = 1 / |row of W + s B A|, 0 for a row of zeros.
void dora_inverse_norms(const Tensor& inverse, const Tensor& w_sq, const Weight& w,
                        const Parameter& a, const Parameter& b, double scale);

// The op behind it: x (T,K), w (N,K) frozen, bias (N) frozen or null, a (R,K), b (N,R) and m (N)
// trainable, inverse (N) constant. With v = drop(x) wᵀ + scale (drop(x) aᵀ) bᵀ,
//   y (T,N) = (x - drop(x)) wᵀ + m inverse v + bias
// The first term is 0 without dropout: PEFT drops what is scaled, and keeps the base's own x.
Var dora_linear(Tape& tape, const Var& x, const Weight& w, const Weight* bias, Parameter& a,
                Parameter& b, Parameter& m, const Tensor& inverse, double scale, float dropout,
                const RandomKey& key, Output output = Output::Read);

}  // namespace lk
