// The solution of exercises/09_merge.h.
//
// W' is one product away from W. Unmerging rounds once more, so a base that must come back byte for
// byte is kept, not computed. BF16 has 8 bits of mantissa, so its neighbour above 1 is 1 + 2^-7,
// and an update up to 2^-8 of W is lost.
#pragma once

#include "tensor/backend.h"

namespace lk::exercise {

// W + scale B A, as a new tensor; w (N,K), a (R,K), b (N,R) of one dtype.
inline Tensor merged(const Tensor& w, const Tensor& a, const Tensor& b, double scale) {
  Backend& backend = w.backend();
  Tensor out = backend.empty(Tag::Weights, w.dtype(), w.shape());
  backend.copy(out, w);
  // ---- your code ----
  backend.matmul_nn(out, GradMode::Add, scale, b, a);
  // ---- end ----
  return out;
}

// W again, from W' = W + scale B A.
inline Tensor unmerged(const Tensor& w, const Tensor& a, const Tensor& b, double scale) {
  // ---- your code ----
  return merged(w, a, b, -scale);
  // ---- end ----
}

// Whether anything is left of an update of this size once W' is rounded to BF16 (8 bits of
// mantissa), if W is 1. Half of the distance between neighbours rounds to the even one, which is W.
inline bool survives_bf16(double update) {
  // ---- your code ----
  return update > 0x1p-8;
  // ---- end ----
}

}  // namespace lk::exercise
