// Products of a few rows with a frozen matrix: see linear_few.cu.
#pragma once

#include <cuda_runtime_api.h>

#include "tensor/tensor.h"

namespace lk {

// y (M,N) = x (M,K) wᵀ, w (N,K), if it is one for these kernels (M <= 8, 16-byte aligned rows);
// else false, with nothing done.
bool linear_few_rows(const Tensor& y, const Tensor& x, const Tensor& w, cudaStream_t stream);

}  // namespace lk
