// Ops of methods that train tokens instead of weights: prompt tuning (Lester et al. 2021), prefix
// tuning (Li & Liang 2021) and LLaMA-Adapter (Zhang et al. 2023). tensor/backend.h explains the
// letters.
#pragma once

#include "autograd/ops.h"
#include "tensor/shared_keys.h"

namespace lk {

// The parameter itself, in the compute dtype. The node refers to p, which must stay where it is
// until the tape has run.
Var as_var(Tape& tape, Parameter& p);

// y (T,n) = columns [begin, end) of x (T,N), a copy.
Var slice_cols(Tape& tape, const Var& x, std::int64_t begin, std::int64_t end);

// y (T,C) = tanh(x)
Var tanh(Tape& tape, const Var& x);

// y (T,C) = x with rows replaced by those of p (P,C): rows[i] becomes row i modulo P of p, once for
// each document. rows (documents * P) I32, distinct. x is not changed.
Var virtual_tokens(Tape& tape, const Var& x, const Tensor& rows, Parameter& p);

// Causal attention inside each segment, where every token also sees the keys and values of a prefix
// that all documents share: q (T,H*D), k, v (T,G*D), pk, pv (n,G*D) -> (T,H*D). The prefix lies in
// front of each document, so with a sliding window a token sees the last keys of the prefix or none:
// prefix key j is at position j, and token i at first_token + positions[i]. `positions` (T) I32 may
// be undefined where the shape has no window. Neither pk nor k is rotated here.
Var prefix_attention(Tape& tape, const Var& q, const Var& k, const Var& v, const Var& pk,
                     const Var& pv, const AttentionShape& shape, const Segments& segments,
                     const Tensor& positions, std::int64_t first_token);

// y (T,H*D) = gate softmax(scale q pkᵀ) pv for each head: attention to the n adapter keys alone,
// without a mask. q (T,H*D), pk, pv (n,G*D), gate (1).
Var adapter_attention(Tape& tape, const Var& q, const Var& pk, const Var& pv, Parameter& gate,
                      const AttentionShape& shape);

// The forward of prefix_attention() onto the o and lse of any attention over the text, for
// generation with a KV cache. No gradient.
void add_prefix(const Tensor& o, const Tensor& lse, const Tensor& q, const SharedKeys& prefix,
                const AttentionShape& shape);

}  // namespace lk
