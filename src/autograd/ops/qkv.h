// A matrix that holds queries, keys and values side by side.
#pragma once

#include <cstdint>

#include "tensor/attention_shape.h"
#include "tensor/tensor.h"

namespace lk {

// Views of the columns of q (T,H*D), k and v (T,G*D) in qkv (T,(H+2G)*D).
struct Qkv {
  Tensor q, k, v;
  Qkv(const Tensor& qkv, const AttentionShape& shape) {
    const std::int64_t H = shape.n_heads, G = shape.n_kv_heads, D = shape.head_dim;
    q = qkv.slice_cols(0, H * D);
    k = qkv.slice_cols(H * D, (H + G) * D);
    v = qkv.slice_cols((H + G) * D, (H + 2 * G) * D);
  }
};

}  // namespace lk
