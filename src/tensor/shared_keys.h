// SharedKeyKernels: attention over a few keys and values that all tokens of a batch share, whatever
// their documents. Prefix tuning and LLaMA-Adapter train such keys: see autograd/virtual_tokens.h.
#pragma once

#include "tensor/backend.h"

namespace lk {

// The keys and values, and where they lie relative to the tokens, which only a sliding window asks:
// key j is at position j, and token i at first_token + positions[i].
struct SharedKeys {
  Tensor k, v;            // (n, G*D)
  Tensor positions = {};  // (T) I32, undefined where the shape has no window
  std::int64_t first_token = 0;
};

class SharedKeyKernels {
 public:
  virtual ~SharedKeyKernels() = default;
  SharedKeyKernels(const SharedKeyKernels&) = delete;
  SharedKeyKernels& operator=(const SharedKeyKernels&) = delete;

  // For each head, with s_ij = scale q_i k_j over the keys that token i sees (all of them or, with a
  // window, those less than `window` positions away):
  //   o_i = sum_j exp(s_ij - lse_i) v_j,  lse_i = log sum_j exp(s_ij)
  // Write: of these keys alone; a token that sees none gets o = 0 and lse = -inf. Add: o and lse
  // hold the attention over other keys and become the attention over both. There is no other mask.
  // q, o (T,H*D), lse (H,T) F32|F64.
  virtual void shared_keys_forward(const Tensor& o, const Tensor& lse, GradMode mode,
                                   const Tensor& q, const SharedKeys& keys,
                                   const AttentionShape& shape) = 0;
  // From the o and lse that shared_keys_forward() left, with p_ij = exp(s_ij - lse_i) and
  // ds_ij = scale p_ij (dout_i v_j - delta_i):
  //   delta_i = sum(dout_i * o_i)      (H,T) F32|F64
  //   dq_i (+)= sum_j ds_ij k_j,  dk_j = sum_i ds_ij q_i,  dv_j = sum_i p_ij dout_i
  // dk and dv are sums over all tokens and over the query heads of a group, in a fixed order. dq is
  // not computed if it is undefined; neither are dk and dv, which are undefined together.
  virtual void shared_keys_backward(const Tensor& dq, GradMode mode, const Tensor& dk,
                                    const Tensor& dv, const Tensor& delta, const Tensor& dout,
                                    const Tensor& q, const SharedKeys& keys, const Tensor& o,
                                    const Tensor& lse, const AttentionShape& shape) = 0;

 protected:
  SharedKeyKernels() = default;
};

}  // namespace lk
