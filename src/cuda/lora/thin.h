// The entry point of thin.cu: products whose inner dimension is a LoRA rank.
#pragma once

#include "cuda/cublaslt.h"
#include "tensor/tensor.h"

namespace lk {

// Returns false, with nothing done, unless all three are BF16, a is not transposed and K <= 128.
bool thin_gemm(const Gemm& gemm, const Tensor& c, float alpha, const Tensor& a, const Tensor& b,
               cudaStream_t stream);

}  // namespace lk
