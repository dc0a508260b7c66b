// A weight kept in 4 to 8 bits: y = x wᵀ with x rounded to int8 on the fly, for inference.
//
// Each row of x is rounded separately, in blocks of 32 with a scale each, and sums over a block are
// exact integers. So a token's result does not depend on which tokens it is computed with. The
// error of x is at most half a step, max|x| / 254 of the block; that of y is at most the sum of |w|
// times it, plus the rounding of float sums.
#pragma once

#include <memory>
#include <span>

#include "cpu/fast/quantised_tile.h"
#include "tensor/weight.h"

namespace lk::cpu {

// The kernels that this processor runs, best last; empty without AVX2.
std::span<const QuantisedTile* const> quantised_tiles();

// Whether this processor has kernels for the type.
bool multiplies_quantised(const GgmlType& type);

class QuantisedLinear : public PackedWeight {
 public:
  // Packs the blocks of w for `tile` (tests), or for the best one if it is null.
  QuantisedLinear(Backend& backend, const Weight& w, const QuantisedTile* tile = nullptr);

  // y (T,N) = x (T,K) wᵀ, F32 or BF16.
  void forward(const Tensor& y, const Tensor& x) const;
  // Writes row n of w, exactly dequantised, to dst (K).
  void row(std::int64_t n, float* dst) const;

 private:
  template <class T>
  void multiply(const Tensor& y, const Tensor& x) const;

  const QuantisedTile& tile_;
  int layout_;
  std::int64_t rows_, n_blocks_, group_bytes_;
  Tensor packed_;  // U8 (groups of 16 rows, bytes of a group)
};

// dst (K) = row n of a quantised weight, packed or not, exactly as ggml dequantises it.
void quantised_row(const Weight& w, std::int64_t n, float* dst);

}  // namespace lk::cpu
