// Projections of one input as one matrix product each way, LoRA included.
//
// Note [Joined projections]: with W (N,K) frozen, A (R,K) and B (N,R) trainable, s = scale x Aᵀ and
// ds = scale dy B:
//
//     y = x Wᵀ + s Bᵀ = [x | s] [W | B]ᵀ          dx = dy W + ds A = [dy | ds] [W ; A]
//
// One buffer serves both products: W with B to its right and A below. s lies in the margin behind
// x's rows, ds in the margin behind dy's, so that neither y nor dx is read again to have the
// low-rank part added: that part costs what its factors cost, instead of a pass over each
// activation. W of q, k and v (or gate and up) lie below each other; B's columns are then
// block-diagonal.
//
// With dropout on A's input, which is another one for each projection, s is made of the masked
// inputs, and ds A, masked again, is added to dx by itself: forward() and into_x() of
// autograd/thin.h.
//
// The corner [A's rows] x [B's columns] is never read. A and B lie there as copies, in the compute
// dtype, of the F32 masters, kept up to date by the optimizer (Parameter::keep_copy_in); in the
// ledger they count as Params, with that corner. W stays a Weight: a view of this buffer.
#pragma once

#include <algorithm>
#include <vector>

#include "autograd/tape.h"
#include "tensor/lora_kernels.h"

namespace lk {

struct JoinedLinear {
  // Rows [begin, end) of W. a, b are null where the projection has no adapter; then rank is 0.
  struct Part {
    std::int64_t begin = 0, end = 0;
    std::int64_t column = 0, rank = 0;  // its thin columns: [column, column + rank) of s
    Parameter *a = nullptr, *b = nullptr;
    std::uint32_t site = 0;  // of its dropout mask
    Weight bias;             // (end - begin) or undefined
  };
  Tensor matrix;                           // (N + S, K + S)
  std::int64_t in = 0, out = 0, thin = 0;  // K, N, S: all ranks, rounded up
  double scale = 1;
  float dropout = 0;  // of training
  std::vector<Part> parts;
  ThinPlan plan;         // of the products with its factors
  Ledger::Share copies;  // all of `matrix` but W, as Params

  Tensor forward_matrix() const { return matrix.slice_rows(0, out); }                // (N, K + S)
  Tensor backward_matrix() const { return matrix.slice_cols(0, in); }                // (N + S, K)
  Tensor w() const { return backward_matrix().slice_rows(0, out); }                  // (N, K)
  Tensor a() const { return matrix.slice_rows(out, out + thin).slice_cols(0, in); }  // (S, K)
  Tensor b() const { return matrix.slice_rows(0, out).slice_cols(in, in + thin); }   // (N, S)
  ThinShape thin_shape() const;  // what `plan` is made of
  bool trains() const {
    return std::any_of(parts.begin(), parts.end(), [](const Part& p) { return p.a != nullptr; });
  }
};

// Outputs have a margin of `margin` columns; an input whose margin is narrower than f.thin is
// copied first. The gradient of an output of joined_*linear should have a margin of f.thin, else it
// is copied too. f must stay where it is until the tape ran. Shapes that do not fit are an Error.
// `drop`: of A's input, p being f.dropout in training and 0 else; the sites are the parts'.

// y (T,N) = h (T,N) + x (T,K) (W + scale B A)ᵀ + bias: a projection back onto the residual stream
Var joined_linear_onto(Tape& tape, const Var& h, const Var& x, const JoinedLinear& f,
                       std::int64_t margin, const InputDropout& drop = {});
// y (T,N) = x (W + scale B A)ᵀ + bias of x = rmsnorm(h), which isn't kept: h (T,K), gain (K) frozen
Var joined_norm_linear(Tape& tape, const Var& h, const Weight& gain, double eps,
                       const JoinedLinear& f, std::int64_t margin, const InputDropout& drop = {});
// joined_linear_onto of x = silu(gate) * up, gate_up (T,2K) holding gate and up side by side. The
// backward overwrites gate_up's value: nothing else may read it.
Var joined_swiglu_linear_onto(Tape& tape, const Var& h, const Var& gate_up, const JoinedLinear& f,
                              std::int64_t margin, const InputDropout& drop = {});

}  // namespace lk
