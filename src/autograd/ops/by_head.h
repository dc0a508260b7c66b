// Norms that treat each head's columns as a row of their own.
#pragma once

#include "tensor/tensor.h"

namespace lk {

// x with every D columns as a row of their own: x (T,C) itself if C = D; otherwise its rows must be
// adjacent.
inline Tensor by_head(const Tensor& x, std::int64_t D) {
  return x.cols() == D ? x : x.reshape({x.rows() * (x.cols() / D), D});
}

}  // namespace lk
