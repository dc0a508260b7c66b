// Projections that share an input, computed as one matrix product each way, LoRA included.
//
// Note [Joined projections]: with W (N,K) frozen, A (R,K) and B (N,R) trainable, s = scale x Aᵀ and
// ds = scale dy B:
//
//     y = x Wᵀ + s Bᵀ = [x | s] [W | B]ᵀ          dx = dy W + ds A = [dy | ds] [W ; A]
//
// One buffer serves both products: W with B to its right and A below it. s lies in the margin
// behind x's rows and ds in the margin behind dy's, so that neither y nor dx is read again to add
// the low-rank part: that part costs what its factors cost, instead of a pass over each activation.
// The W of q, k and v (or of gate and up) lie below each other; B's columns are then
// block-diagonal.
//
// With dropout each projection has its own masked input for A: s is made of the masked inputs, and
// ds A, masked again, is added to dx separately. See Note [Masks drawn once] in autograd/thin.h.
//
// The corner [A's rows] x [B's columns] is never read. A and B lie in the buffer as copies, in the
// compute dtype, of the F32 masters, and the optimizer keeps them up to date
// (Parameter::keep_copy_in). Each part's thin columns begin at a multiple of 8; rows of A and columns
// of B that no part has are zero. In the ledger all of it counts as Params, together with that
// corner. W stays a Weight: a view of the buffer.
//
// Where a part's W is quantised there is no such buffer: the copies of A and B lie in buffers of
// their own, each W stays where it is, and a product puts them together in DenseScratch, [W | B] for
// y and [W ; A] for dx. Where products with it run in FP8, the factors lie beside its codes as codes
// (Note [Pairs of codes] in tensor/fp8_product.h). DenseScratch also serves a dense W whose memory
// others use in turn (tensor/weight_source.h); its rows in the scratch are as far apart as they
// would be in the buffer, so that the same kernels run.
//
// With DoRA (lora/dora.h) the product is v, and each part's columns of y are m / |row of W + s B A|
// times v's; dv takes dy's place in the backward, and v is kept for m's gradient.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "autograd/tape.h"
#include "tensor/dense_scratch.h"
#include "tensor/fp8_product.h"
#include "tensor/lora_kernels.h"

namespace lk {

struct JoinedLinear {
  // Rows [begin, end) of W. a and b are null, and rank is 0, where the projection has no adapter.
  struct Part {
    std::int64_t begin = 0, end = 0;
    std::int64_t column = 0, rank = 0;  // its thin columns: [column, column + rank) of s
    Parameter *a = nullptr, *b = nullptr;
    std::uint32_t site = 0;  // keys its dropout mask
    Weight bias;             // (end - begin) or undefined
    Weight apart;            // W, where the matrix does not hold it: undefined with a matrix
    // DoRA's, each (end - begin): m, or null; squares of the norms of W's rows; and 1 / the norms of
    // W + s B A's, which update_norms computes.
    Parameter* m = nullptr;
    Tensor w_sq, inverse;
  };
  Tensor matrix;                           // (N + S, K + S); undefined if a W lies apart
  Tensor apart_a, apart_b;                 // (S, K) and (N, S) without a matrix
  std::int64_t in = 0, out = 0, thin = 0;  // K, N, and S: the sum of all ranks, each rounded up
  double scale = 1;
  float dropout = 0;  // probability in training
  std::vector<Part> parts;
  ThinPlan plan;         // how the products with its factors run
  Ledger::Share copies;  // counts all of `matrix` but W, or apart_a and apart_b, as Params

  // (S, K) and (N, S)
  Tensor a() const {
    return matrix ? matrix.slice_rows(out, out + thin).slice_cols(0, in) : apart_a;
  }
  Tensor b() const {
    return matrix ? matrix.slice_rows(0, out).slice_cols(in, in + thin) : apart_b;
  }
  // y (T,N) = x (T,K+S) [W | B]ᵀ + addend
  void times_wb(const Tensor& y, const Tensor& x, const Tensor& addend) const;
  // dx (T,K) (+)= dy (T,N) W, or dy (T,N+S) [W ; A]
  void times_wa(const Tensor& dx, GradMode mode, const Tensor& dy) const;
  void times_a(const Tensor& products) const;  // (N+S,S) = [W ; A] Aᵀ
  ThinShape thin_shape() const;                // the shape that `plan` is made for
  void put_parts(DenseScratch& dense) const;   // every W that lies apart, in its rows
  std::int64_t scratch_margin() const;         // behind the rows of [W ; A]
  std::vector<Fp8Part> fp8_parts() const;      // the same, for a product in FP8
  bool scales_columns() const {
    return std::any_of(parts.begin(), parts.end(), [](const Part& p) { return p.m != nullptr; });
  }
  bool trains() const {
    return std::any_of(parts.begin(), parts.end(), [](const Part& p) { return p.a != nullptr; });
  }
};

// Computes the norms of the parts with magnitudes, in one launch for all. It comes before these
// products in each forward pass, for a recording runs it again with other factors. Null is left out.
void update_norms(Backend& backend, std::initializer_list<const JoinedLinear*> joined);

// Outputs have a margin of `margin` columns. An input whose margin is narrower than f.thin is
// copied first; so is the gradient of an output of joined_*linear whose margin is narrower than
// f.thin. f must stay where it is until the tape has run. Throws Error if shapes do not fit. `drop`
// is dropout of A's input, with p = f.dropout in training and 0 otherwise; the parts hold the
// sites, and the op provides memory for the bits.

// y (T,N) = x (T,K) (W + scale B A)ᵀ + bias
Var joined_linear(Tape& tape, const Var& x, const JoinedLinear& f, std::int64_t margin,
                  const InputDropout& drop = {});
// y (T,N) = h (T,N) + x (T,K) (W + scale B A)ᵀ + bias: a projection back onto the residual stream
Var joined_linear_onto(Tape& tape, const Var& h, const Var& x, const JoinedLinear& f,
                       std::int64_t margin, const InputDropout& drop = {},
                       Output output = Output::Read);
// joined_linear with x = rmsnorm(h), which isn't kept: h (T,K), gain (K) frozen
Var joined_norm_linear(Tape& tape, const Var& h, const Weight& gain, double eps,
                       const JoinedLinear& f, std::int64_t margin, const InputDropout& drop = {});
// joined_linear and joined_linear_onto with x = act(gate) * up, which isn't kept; gate_up (T,2K)
// holds gate and up side by side. Nothing else may read gate_up's value: see Note [Gradients over
// gate and up] in ops/joined.cpp.
Var joined_gated_linear(Tape& tape, Activation act, const Var& gate_up, const JoinedLinear& f,
                        std::int64_t margin, const InputDropout& drop = {});
Var joined_gated_linear_onto(Tape& tape, Activation act, const Var& h, const Var& gate_up,
                             const JoinedLinear& f, std::int64_t margin,
                             const InputDropout& drop = {}, Output output = Output::Read);

// qkv_attention (ops.h) of q and k that are normed head by head before they are rotated: gains (D)
// frozen. qkv's value stays as it is.
struct HeadNorms {
  Weight q, k;
  double eps = 0;
};
Var head_normed_attention(Tape& tape, const Var& qkv, const HeadNorms& norms,
                          const Tensor& rope_table, const Tensor& positions,
                          const AttentionShape& shape, const Segments& segments,
                          std::int64_t margin);

}  // namespace lk
