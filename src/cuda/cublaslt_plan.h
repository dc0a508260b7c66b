// What cuBLASLt needs to run a product of a given shape.
#pragma once

#include <cublasLt.h>

#include <vector>

#include "cuda/cublaslt.h"

namespace lk {

// Row-major is column-major transposed, so cuBLASLt is asked for cᵀ = op(b)ᵀ op(a)ᵀ: its first
// operand is our b, and its m is our n. A row-major matrix (r,c) with stride ld is a column-major
// (c,r) with the same ld.
struct CublasLt::Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr, addend = nullptr;
  std::vector<cublasLtMatmulAlgo_t> candidates;  // the fastest first, by cuBLASLt's estimate
  std::size_t chosen = 0;
  bool supported = false, timed = false;

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    if (a) cublasLtMatrixLayoutDestroy(a);
    if (b) cublasLtMatrixLayoutDestroy(b);
    if (c) cublasLtMatrixLayoutDestroy(c);
    if (addend) cublasLtMatrixLayoutDestroy(addend);
    if (desc) cublasLtMatmulDescDestroy(desc);
  }
};

}  // namespace lk
