// What attention needs to know apart from its matrices.
#pragma once

#include "tensor/tensor.h"

namespace lk {

struct AttentionShape {
  int n_heads = 0;     // H
  int n_kv_heads = 0;  // G, divides H: query head h reads key/value head h / (H / G)
  int head_dim = 0;    // D
  float scale = 0;     // usually 1 / sqrt(D)
  int window = 0;      // > 0: a query sees only the last `window` keys up to itself
};

// The rotation of q and k: rope()'s angles and the position of each token.
struct Rotation {
  Tensor table;      // (P, D) F32|F64
  Tensor positions;  // (T) I32
};

}  // namespace lk
