// The matrix product on processors with BF16 arithmetic.
#pragma once

#include "cpu/fast/bf16_tile.h"
#include "cpu/fast/gemm.h"

namespace lk::cpu {

// gemm() for operands that lie in one of two ways: K along the rows of a (a.col = 1), or K down the
// rows of both (a.row = b.col = 1). K > 0, and at most kBlockK if c is bf16.
template <class TC>
void gemm_bf16(const Bf16Tile& tile, Backend& backend, Strided<TC> c, bool add, float alpha,
               Strided<const bf16> a, Strided<const bf16> b, std::int64_t M, std::int64_t N,
               std::int64_t K);

}  // namespace lk::cpu
