// A frozen projection of a few tokens, for decoding.
#pragma once

#include <algorithm>

#include "cpu/kernels.h"
#include "tensor/tensor.h"

namespace lk::cpu {

constexpr std::int64_t kFewRows = 8;

// Of a quantised w (N,K), so many rows are dense at a time that they stay in the cache.
inline Shape few_rows_part(const Shape& w) {
  return {std::clamp<std::int64_t>((std::int64_t{1} << 18) / w[1], 1, w[0]), w[1]};
}

// y (M,N) = x (M,K) w^T, w (N,K), M <= kFewRows; F32 or BF16, all of one dtype, rows of w
// contiguous. Every weight is read once and nothing is packed. F32 sums in an order that depends on
// K alone: a row has the same bits for every M.
void linear_few_rows(const Tensor& y, const Tensor& x, const Tensor& w);

}  // namespace lk::cpu
