// The innermost loops of products of BF16 numbers on processors that multiply pairs of them
// (AVX-512 BF16): each lane adds two products to a float. So operands are laid out in pairs along
// K, and a last odd element is paired with zero.
//
// This header and bf16_tile.cpp use no inline function of any other header: see gemm_tile.h.
#pragma once

#include <cstdint>

namespace lk::cpu {

// Left operand: elements k and k + 1 (k even) of row i are adjacent at data[i * row + k / 2 * col].
// A matrix whose rows run along K is read in place, with col = 2. Nothing behind K is read.
struct Bf16Left {
  const std::uint16_t* data;
  std::int64_t row, col;
};

// Right operand, in panels of kWide columns: elements k and k + 1 of column j of panel p are
// adjacent at data[p * next + k / 2 * row + 2 * j]. Of a panel that is not full, 8, 16 or kWide
// columns are read. An odd K is padded with a zero.
struct Bf16Panels {
  const std::uint16_t* data;
  std::int64_t row, next;
};

// A block of attention scores, `rows` queries x kColumns keys, row-major without gaps. Query i sees
// the block's keys [hi + i - window, hi + i); with window = 0, all keys below hi + i.
struct ScoreBlock {
  static constexpr int kColumns = 64;
  std::int64_t rows, hi, window;
  float scale;
};

struct Bf16Tile {
  static constexpr int kWide = 32;  // most columns of a panel
  // Columns of the narrowest panel that holds n <= kWide columns.
  static int columns_for(std::int64_t n) { return n <= 8 ? 8 : n <= 16 ? 16 : 32; }

  // out[i * out_row + j] (+)= alpha * sum over k < K, for `rows` rows and n columns. Every sum is a
  // sum of chains of kChain terms, in an order that depends on K alone.
  void (*multiply_f32)(std::int64_t rows, std::int64_t n, std::int64_t K, Bf16Left a, Bf16Panels b,
                       float* out, std::int64_t out_row, float alpha, bool add);
  void (*multiply_bf16)(std::int64_t rows, std::int64_t n, std::int64_t K, Bf16Left a, Bf16Panels b,
                        std::uint16_t* out, std::int64_t out_row, float alpha, bool add);

  // Packs n columns as one panel of `columns` columns (any multiple of 8), with zeros behind n.
  // pack_rows reads rows of b: element (k, j) is at b[k * stride + j].
  void (*pack_rows)(const std::uint16_t* b, std::int64_t stride, std::int64_t K, std::int64_t n,
                    std::int64_t columns, std::uint16_t* packed);
  // pack_columns reads columns of b: element (k, j) is at b[j * stride + k].
  void (*pack_columns)(const std::uint16_t* b, std::int64_t stride, std::int64_t K, std::int64_t n,
                       std::int64_t columns, std::uint16_t* packed);

  // Forward softmax of a block of raw scores s: p = exp(scale * s - max), zero where a key is not
  // seen. max[i] is the running maximum of row i; sum[i] and the row's `width` outputs are rescaled
  // to it.
  void (*softmax)(const ScoreBlock& block, const float* s, std::uint16_t* p, float* max, float* sum,
                  float* out, std::int64_t width);
  // Backward softmax: p = exp(scale * s - lse[i]) and ds = p (dp - delta[i]), zero where a key is
  // not seen. `ds` is row-major; p_pairs and ds_pairs hold rows 2 i and 2 i + 1 next to each other,
  // [i][column][2], with zeros for a missing last row. Null pointers are not written.
  void (*softmax_backward)(const ScoreBlock& block, const float* s, const float* dp,
                           const float* lse, const float* delta, std::uint16_t* ds,
                           std::uint16_t* p_pairs, std::uint16_t* ds_pairs);
};

namespace isa_bf16 {  // AVX-512 with BF16
extern const Bf16Tile bf16_tile;
}

// The tile if this processor runs it, else null.
const Bf16Tile* best_bf16_tile();

// For tests: allow_bf16_tile(false) makes best_bf16_tile() and best_bf16_rows() return null, as on
// a processor without BF16 arithmetic.
void allow_bf16_tile(bool allowed);

}  // namespace lk::cpu
