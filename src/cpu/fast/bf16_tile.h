// The innermost loops of products of BF16 numbers on processors that multiply pairs of them
// (AVX-512 BF16): each lane adds two products to a float. So everything is made of pairs along K;
// a last odd element is paired with zero.
//
// This header and bf16_tile.cpp use no inline function of any other header: see gemm_tile.h.
#pragma once

#include <cstdint>

namespace lk::cpu {

// Left operand: elements k and k + 1 (k even) of row i are adjacent at data[i * row + k / 2 * col].
// A matrix with its rows along K is read where it lies, with col = 2. Nothing after K is read.
struct Bf16Left {
  const std::uint16_t* data;
  std::int64_t row, col;
};

// Right operand, in panels of kWide columns: elements k and k + 1 of column j of panel p are
// adjacent at data[p * next + k / 2 * row + 2 * j]. Of a panel that is not full, 8, 16 or kWide
// columns are read. An odd K is filled up with a zero.
struct Bf16Panels {
  const std::uint16_t* data;
  std::int64_t row, next;
};

// A block of attention scores, `rows` queries x kColumns keys, row-major without gaps. Query i sees
// the keys [hi + i - window, hi + i) of it, window = 0: all below hi + i.
struct ScoreBlock {
  static constexpr int kColumns = 64;
  std::int64_t rows, hi, window;
  float scale;
};

struct Bf16Tile {
  static constexpr int kWide = 32;  // columns of a panel at most
  // Columns of the narrowest panel that holds n <= kWide.
  static int columns_for(std::int64_t n) { return n <= 8 ? 8 : n <= 16 ? 16 : 32; }

  // out[i * out_row + j] (+)= alpha * sum over k < K, for `rows` rows and n columns. Every sum is a
  // sum of chains of kChain terms, in an order that depends on K alone.
  void (*multiply_f32)(std::int64_t rows, std::int64_t n, std::int64_t K, Bf16Left a, Bf16Panels b,
                       float* out, std::int64_t out_row, float alpha, bool add);
  void (*multiply_bf16)(std::int64_t rows, std::int64_t n, std::int64_t K, Bf16Left a, Bf16Panels b,
                        std::uint16_t* out, std::int64_t out_row, float alpha, bool add);

  // Packs n columns as one panel of `columns` (any multiple of 8), zeros after n.
  // From rows of b, element (k, j) at b[k * stride + j]:
  void (*pack_rows)(const std::uint16_t* b, std::int64_t stride, std::int64_t K, std::int64_t n,
                    std::int64_t columns, std::uint16_t* packed);
  // The same from columns of b, element (k, j) at b[j * stride + k]:
  void (*pack_columns)(const std::uint16_t* b, std::int64_t stride, std::int64_t K, std::int64_t n,
                       std::int64_t columns, std::uint16_t* packed);

  // Forward softmax of a block of raw scores s: p = exp(scale * s - max), zeros outside, where
  // max[i] is the running maximum of row i; sum[i] and the row's `width` outputs move with it.
  void (*softmax)(const ScoreBlock& block, const float* s, std::uint16_t* p, float* max, float* sum,
                  float* out, std::int64_t width);
  // Backward: p = exp(scale * s - lse[i]) and ds = p (dp - delta[i]), zeros outside. `ds` is
  // row-major; p_pairs and ds_pairs hold rows 2 i and 2 i + 1 side by side, [i][column][2], a
  // missing last row as zeros. Null pointers are not written.
  void (*softmax_backward)(const ScoreBlock& block, const float* s, const float* dp,
                           const float* lse, const float* delta, std::uint16_t* ds,
                           std::uint16_t* p_pairs, std::uint16_t* ds_pairs);
};

namespace isa_bf16 {  // AVX-512 with BF16
extern const Bf16Tile bf16_tile;
}

// The tile if this processor runs it, else null.
const Bf16Tile* best_bf16_tile();

// For tests: false makes best_bf16_tile() and best_bf16_rows() null, as on a processor without it.
void allow_bf16_tile(bool allowed);

}  // namespace lk::cpu
