// Compiled once per instruction set: LK_ISA is its namespace.
#include "cpu/fast/gemm_tile.h"

namespace lk::cpu::LK_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVector = 16, kRowsWide = 12, kRowsNarrow = 12;  // 24 of 32 registers hold sums
#elif defined(__AVX__)
constexpr int kVector = 8, kRowsWide = 6, kRowsNarrow = 12;  // 12 of 16 registers hold sums
#else
constexpr int kVector = 4, kRowsWide = 6, kRowsNarrow = 12;
#endif

typedef float Vec __attribute__((vector_size(kVector * 4)));
typedef float LooseVec __attribute__((vector_size(kVector * 4), aligned(4), may_alias));

// Multiplies M rows of a by a panel. Sums stay in registers: for each k, NV loads of the panel, M
// broadcasts, M * NV fused multiply-adds. Every kChain terms the sums are added to `out`: a sum of
// short sums loses less than one long sum (the error grows with sqrt(kChain) instead of sqrt(K)).
template <int M, int NV>
void tile(std::int64_t K, const float* a, std::int64_t a_row, std::int64_t a_col,
          const float* panel, std::int64_t panel_row, float* out, std::int64_t out_row, bool add) {
  const float* row[M];
#pragma GCC unroll 12
  for (int i = 0; i < M; ++i) row[i] = a + i * a_row;
  for (std::int64_t k = 0, at = 0; k < K;) {
    Vec sum[M][NV] = {};
    const bool keep = add || k > 0;
    const std::int64_t end = k + kChain < K ? k + kChain : K;
    for (; k < end; ++k, at += a_col, panel += panel_row) {
      const LooseVec* b = reinterpret_cast<const LooseVec*>(panel);
#pragma GCC unroll 12
      for (int i = 0; i < M; ++i) {
        const float x = row[i][at];
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) sum[i][v] += x * b[v];
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < M; ++i) {
      LooseVec* total = reinterpret_cast<LooseVec*>(out + i * out_row);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) total[v] = keep ? total[v] + sum[i][v] : sum[i][v];
    }
  }
}

// Multiplies 1 <= m <= M rows of a by a panel.
template <int M, int NV>
void tile_of(std::int64_t m, std::int64_t K, const float* a, std::int64_t a_row, std::int64_t a_col,
             const float* panel, std::int64_t panel_row, float* out, std::int64_t out_row,
             bool add) {
  if (m == M)
    tile<M, NV>(K, a, a_row, a_col, panel, panel_row, out, out_row, add);
  else if constexpr (M > 1)
    tile_of<M - 1, NV>(m, K, a, a_row, a_col, panel, panel_row, out, out_row, add);
}

// Splits the rows into tiles as equal as possible: 8 rows are 4 + 4, not 6 + 2.
template <int M, int NV>
void multiply_tiles(std::int64_t rows, std::int64_t K, const float* a, std::int64_t a_row,
                    std::int64_t a_col, const float* panel, std::int64_t panel_row, float* out,
                    std::int64_t out_row, bool add) {
  for (std::int64_t tiles = (rows + M - 1) / M, i = 0; tiles > 0; --tiles) {
    std::int64_t m = (rows - i + tiles - 1) / tiles;
    tile_of<M, NV>(m, K, a + i * a_row, a_row, a_col, panel, panel_row, out + i * out_row, out_row,
                   add);
    i += m;
  }
}

void multiply(std::int64_t rows, std::int64_t K, const float* a, std::int64_t a_row,
              std::int64_t a_col, const float* panel, std::int64_t panel_row, int columns,
              float* out, std::int64_t out_row, bool add) {
  if (columns == kVector)
    multiply_tiles<kRowsNarrow, 1>(rows, K, a, a_row, a_col, panel, panel_row, out, out_row, add);
  else
    multiply_tiles<kRowsWide, 2>(rows, K, a, a_row, a_col, panel, panel_row, out, out_row, add);
}

// ---- packing ----------------------------------------------------------------------------------

typedef float Vec8 __attribute__((vector_size(32)));
typedef float LooseVec8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef std::int32_t Int8 __attribute__((vector_size(32)));
typedef std::uint32_t Bits8 __attribute__((vector_size(32)));
typedef std::uint16_t LooseHalf8 __attribute__((vector_size(16), aligned(2), may_alias));

inline float widen(float x) { return x; }
inline float widen(std::uint16_t x) {  // bf16 is the upper half of a float
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(x) << 16);
}
inline Vec8 load8(const float* p) { return *reinterpret_cast<const LooseVec8*>(p); }
inline Vec8 load8(const std::uint16_t* p) {
  Bits8 bits = __builtin_convertvector(*reinterpret_cast<const LooseHalf8*>(p), Bits8) << 16;
  return reinterpret_cast<Vec8>(bits);
}

// Packs from rows of b. Whole rows are read at a time: they are long, which suits memory.
template <class T>
void pack(const T* b, std::int64_t stride, std::int64_t K, std::int64_t n, int columns,
          float* packed) {
  for (std::int64_t k = 0; k < K; ++k, b += stride) {
    float* to = packed + k * columns;
    std::int64_t j = 0;
    for (; j + columns <= n; j += columns, to += K * columns)
      for (int l = 0; l < columns; l += kVector)
        for (int i = l; i < l + kVector; ++i) to[i] = widen(b[j + i]);
    if (j < n)
      for (int l = 0; l < columns; ++l) to[l] = j + l < n ? widen(b[j + l]) : 0.0f;
  }
}

// Transposes an 8 x 8 block of rows r0..r7: pairs, then quads, then halves change places.
inline void transpose8(Vec8 (&r)[8]) {
  Vec8 t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = __builtin_shuffle(r[i], r[i + 1], Int8{0, 8, 1, 9, 4, 12, 5, 13});
    t[i + 1] = __builtin_shuffle(r[i], r[i + 1], Int8{2, 10, 3, 11, 6, 14, 7, 15});
  }
  Vec8 u[8];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = __builtin_shuffle(t[i + j], t[i + j + 2], Int8{0, 1, 8, 9, 4, 5, 12, 13});
      u[i + 2 * j + 1] =
          __builtin_shuffle(t[i + j], t[i + j + 2], Int8{2, 3, 10, 11, 6, 7, 14, 15});
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = __builtin_shuffle(u[i], u[i + 4], Int8{0, 1, 2, 3, 8, 9, 10, 11});
    r[i + 4] = __builtin_shuffle(u[i], u[i + 4], Int8{4, 5, 6, 7, 12, 13, 14, 15});
  }
}

template <class T>
void pack_transposed(const T* b, std::int64_t stride, std::int64_t K, std::int64_t n, int columns,
                     float* packed) {
  for (std::int64_t first = 0; first < n; first += columns, packed += K * columns)
    for (int j = 0; j < columns; j += 8) {
      std::int64_t k = 0;
      const T* from = b + (first + j) * stride;
      if (first + j + 8 <= n && columns >= 8)
        for (; k + 8 <= K; k += 8) {
          Vec8 block[8];
#pragma GCC unroll 8
          for (int l = 0; l < 8; ++l) block[l] = load8(from + l * stride + k);
          transpose8(block);
#pragma GCC unroll 8
          for (int l = 0; l < 8; ++l)
            *reinterpret_cast<LooseVec8*>(packed + (k + l) * columns + j) = block[l];
        }
      for (; k < K; ++k)
        for (int l = 0; l < 8 && j + l < columns; ++l)
          packed[k * columns + j + l] = first + j + l < n ? widen(from[l * stride + k]) : 0.0f;
    }
}

}  // namespace

extern const GemmTile gemm_tile;
const GemmTile gemm_tile = {
    kVector,
    multiply,
    pack<float>,
    pack<std::uint16_t>,
    pack_transposed<float>,
    pack_transposed<std::uint16_t>,
};

}  // namespace lk::cpu::LK_ISA
