// The matrix product on processors with BF16 arithmetic.
#pragma once

#include "cpu/fast/bf16_tile.h"
#include "cpu/fast/gemm.h"

namespace lk::cpu {

// Where K runs along the rows of a, b is packed by blocks of so many of its columns and rows.
struct Bf16Blocks {
  std::int64_t n, k;
  std::int64_t packed_floats() const { return n * ((k + 1) / 2); }  // pairs of rows
};
Bf16Blocks bf16_blocks(std::int64_t N, std::int64_t K);

// gemm() for operands that lie in one of two ways: K along the rows of a (a.col = 1), or K down the
// rows of both (a.row = b.col = 1). K > 0, and at most kBlockK if c is bf16.
template <class TC>
void gemm_bf16(const Bf16Tile& tile, Backend& backend, Strided<TC> c, bool add, float alpha,
               Strided<const bf16> a, Strided<const bf16> b, std::int64_t M, std::int64_t N,
               std::int64_t K);

}  // namespace lk::cpu
