// 9. Merge: W' = W + s B A, and take it back.
//
// A merged layer computes what the layer with its adapter computed, in one product. The test proves
// it with the K unit vectors as inputs, as a linear map is known by what it does to these; then it
// unmerges, and asks what is left of W in F64 and in BF16.
//
// Hints
// - Backend::matmul_nn is c (M,N) (+)= alpha a (M,K) b (K,N). With W's shape (N,K), one call adds
//   s B A. W itself is frozen, so it is added to a copy.
// - (W + u) - u is not W: each addition rounds. By how much, if |u| is larger than |W|?
#pragma once

#include "tensor/backend.h"

namespace lk::exercise {

// W + scale B A, as a new tensor; w (N,K), a (R,K), b (N,R) of one dtype.
inline Tensor merged(const Tensor& w, const Tensor& a, const Tensor& b, double scale) {
  Backend& backend = w.backend();
  Tensor out = backend.empty(Tag::Weights, w.dtype(), w.shape());
  backend.copy(out, w);
  // ---- your code ----
  static_cast<void>(a), static_cast<void>(b), static_cast<void>(scale);
  // ---- end ----
  return out;
}

// W again, from W' = W + scale B A.
inline Tensor unmerged(const Tensor& w, const Tensor& a, const Tensor& b, double scale) {
  // ---- your code ----
  static_cast<void>(a), static_cast<void>(b), static_cast<void>(scale);
  return w;
  // ---- end ----
}

// Whether anything is left of an update of this size once W' is rounded to BF16 (8 bits of
// mantissa), if W is 1. Half of the distance between neighbours rounds to the even one, which is W.
inline bool survives_bf16(double update) {
  // ---- your code ----
  return update != 0;
  // ---- end ----
}

}  // namespace lk::exercise
