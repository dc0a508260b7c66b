// CacheKernels: operations of a step of generation with a KV cache, each in one launch where the
// device can, since launches cost as much as the products of such a step. nn/cached_ops.h defines
// the operations and composes them from the core's ops where there is no kernel.
#pragma once

#include <span>

#include "tensor/backend.h"

namespace lk {

// Where a step's keys and values go: rows (T) I32, distinct, of keys and values (P, G*D).
struct CacheRows {
  Tensor keys, values, rows;
};
// One of several frozen products of one input: y (T,N) = addend (T,N) + x wᵀ. An undefined addend
// is zero.
struct LinearPart {
  Tensor y;
  const Weight* w;
  Tensor addend = {};  // not y's memory
};
// A product's input, made of x (T,K) where the product reads it: the RMSNorm of x or, where `gate` is defined,
// act(gate) * x.
struct MadeInput {
  const Weight* gain = nullptr;  // (K)
  double eps = 0;
  Tensor made = {};  // (T,K): the input is left here; not x's memory, nor the gate's
  Tensor gate = {};  // (T,K)
  Activation act = Activation::Silu;
};
// Attention of a step's new tokens, which come as their projections give them, to their own documents.
struct CachedAttention {
  Tensor o, lse;   // (T,H*D), and (H,T) F32|F64
  Tensor q, k, v;  // (T,H*D), and (T,G*D) twice; they may be changed
  // RMSNorm of q and k by head before all else: (D), or null. What is normed has adjacent rows.
  const Weight *q_gain = nullptr, *k_gain = nullptr;
  double eps = 0;
  Rotation rotation;   // of q and k, unless its table is undefined
  CacheRows cache;     // where k and v go: rows that are the last keys of k_rows
  Tensor made_q = {};  // (T,H*D): q normed and rotated is left here, unless undefined
  const AttentionShape& shape;
  const Segments& q_seg;
  const KeyRows& k_rows;
};
// The inputs of the step of generation after this one, which has one new token for each of n sequences.
struct NextInputs {
  Tensor chosen;  // (n) F32: each sequence's next token, or NaN where no logit is finite
  // (n) I32, this step's: the ids become the chosen tokens (or 0), the others one more.
  Tensor ids, positions, cache_rows, key_ends;
};

class CacheKernels {
 public:
  virtual ~CacheKernels() = default;
  CacheKernels(const CacheKernels&) = delete;
  CacheKernels& operator=(const CacheKernels&) = delete;

  // Each operation returns false, and does nothing, where no kernel suits the shape.
  virtual bool linear_parts(const Tensor& x, const MadeInput* input,
                            std::span<const LinearPart> parts) = 0;
  virtual bool rope_into_cache(const Tensor& q, const Tensor& k, const Tensor& v,
                               const CacheRows& cache, const Tensor& table, const Tensor& positions,
                               int head_dim) = 0;
  virtual bool attend(const CachedAttention& a) = 0;
  virtual bool choose_next(const NextInputs& next, const Tensor& logits) = 0;

 protected:
  CacheKernels() = default;
};

}  // namespace lk
