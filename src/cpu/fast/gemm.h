// The matrix product in single precision, over F32 or BF16 storage, on processors of any width.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace lk::cpu {

// A strided matrix: element (i, j) is data[i * row + j * col]; one of the strides is 1. Swapping
// them transposes it.
template <class T>
struct Strided {
  T* data;
  std::int64_t row, col;
  Strided transposed() const { return {data, col, row}; }
};

// The longest sum kept in registers and caches; longer ones are added up in c if that is float.
inline constexpr std::int64_t kBlockK = 2048;

// Along which index both operands of a product are contiguous, or that each is along another.
enum class Contiguous { AlongK, AcrossK, Mixed };

// The floats of scratch that gemm() takes for operands of `in` and a result of `out`: for its sums, if they
// must not be rounded on the way, for the right operand, packed, and for the left one, if it is packed too.
struct GemmScratch {
  std::int64_t sums = 0, right = 0, left = 0;
};
GemmScratch gemm_scratch(DType in, DType out, Contiguous operands, std::int64_t M, std::int64_t N,
                         std::int64_t K);

// c (M,N) (+)= alpha a (M,K) b (K,N), T and TC float or bf16. Scratch comes from `backend` as
// Workspace.
//
// Every element is summed in float, in an order that depends on K alone: the result does not depend
// on the number of threads, nor on the other rows of the batch.
template <class T, class TC>
void gemm(Backend& backend, Strided<TC> c, GradMode mode, double alpha, Strided<const T> a,
          Strided<const T> b, std::int64_t M, std::int64_t N, std::int64_t K);

}  // namespace lk::cpu
