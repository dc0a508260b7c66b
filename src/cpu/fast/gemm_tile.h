// The innermost loops of the matrix product. gemm_tile.cpp is compiled once per instruction set,
// into one namespace each; gemm.cpp picks the best that the processor has.
//
// This header and gemm_tile.cpp use no inline function of any other header: the linker keeps only
// one copy of such a function, and it might keep the one compiled for a newer processor.
#pragma once

#include <cstdint>

namespace lk::cpu {

// The longest chain of additions: see tile() in gemm_tile.cpp.
inline constexpr std::int64_t kChain = 256;

// The kernels of one instruction set. Products are made of panels: columns of the right operand,
// one or two vectors wide.
struct GemmTile {
  int vector;  // floats per vector register

  int narrow() const { return vector; }
  int wide() const { return 2 * vector; }

  // out (+)= a b for one panel of `columns` columns (narrow() or wide()). Element (i, k) of a is
  // a[i * a_row + k * a_col], (k, j) of b is panel[k * panel_row + j], and (i, j) of the result is
  // out[i * out_row + j].
  void (*multiply)(std::int64_t rows, std::int64_t K, const float* a, std::int64_t a_row,
                   std::int64_t a_col, const float* panel, std::int64_t panel_row, int columns,
                   float* out, std::int64_t out_row, bool add);

  // Packs n columns of b as panels of exactly `columns` columns, with zeros behind n: panel p holds
  // columns [p * columns, (p + 1) * columns) and starts at packed + p * columns * K. pack_f32 and
  // pack_bf16 read rows of b: element (k, j) is at b[k * stride + j].
  void (*pack_f32)(const float* b, std::int64_t stride, std::int64_t K, std::int64_t n, int columns,
                   float* packed);
  void (*pack_bf16)(const std::uint16_t* b, std::int64_t stride, std::int64_t K, std::int64_t n,
                    int columns, float* packed);
  // pack_transposed_* read columns of b: element (k, j) is at b[j * stride + k].
  void (*pack_transposed_f32)(const float* b, std::int64_t stride, std::int64_t K, std::int64_t n,
                              int columns, float* packed);
  void (*pack_transposed_bf16)(const std::uint16_t* b, std::int64_t stride, std::int64_t K,
                               std::int64_t n, int columns, float* packed);
};

namespace isa_base {  // the compiler's default: SSE2 on x86-64
extern const GemmTile gemm_tile;
}
namespace isa_v3 {  // AVX2 and FMA
extern const GemmTile gemm_tile;
}
namespace isa_v4 {  // AVX-512
extern const GemmTile gemm_tile;
}

// The best of these that this processor runs.
const GemmTile& best_gemm_tile();

}  // namespace lk::cpu
