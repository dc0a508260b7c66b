// A frozen projection of a few tokens, for decoding.
#pragma once

#include "cpu/kernels.h"
#include "tensor/tensor.h"

namespace lk::cpu {

constexpr std::int64_t kFewRows = 8;

// y (M,N) = x (M,K) w^T, w (N,K), M <= kFewRows; F32 or BF16, all of one dtype, rows of w
// contiguous. Every weight is read once and nothing is packed. F32 sums in an order that depends on
// K alone: a row has the same bits for every M.
void linear_few_rows(const Tensor& y, const Tensor& x, const Tensor& w);

}  // namespace lk::cpu
