// What products are made of besides tiles (gemm_tile.h): packing the right operand, and what becomes of a strip of sums.
// Included by gemm.cpp alone.
#pragma once

#include <algorithm>

#include "cpu/fast/gemm.h"
#include "cpu/fast/gemm_tile.h"
#include "cpu/fast/simd.h"

namespace lk::cpu {
namespace {

constexpr std::int64_t kSerial = std::int64_t{1} << 16;  // multiply-adds not worth a second thread
constexpr std::int64_t kStrip = 96;                      // rows per unit of work
constexpr std::int64_t kPanels = 8;                      // panels per unit of work
constexpr int kWidest = 32;                              // most columns of a panel

// Packs columns [0, n) of b as panels.
template <class T>
void pack_panels(const GemmTile& tile, Strided<const T> b, std::int64_t K, std::int64_t n,
                 std::int64_t columns, float* packed) {
  const int c = static_cast<int>(columns);
  if constexpr (std::is_same_v<T, float>) {
    if (b.col == 1)
      tile.pack_f32(b.data, b.row, K, n, c, packed);
    else
      tile.pack_transposed_f32(b.data, b.col, K, n, c, packed);
  } else {
    if (b.col == 1)
      tile.pack_bf16(bits(b.data), b.row, K, n, c, packed);
    else
      tile.pack_transposed_bf16(bits(b.data), b.col, K, n, c, packed);
  }
}

// c (rows,n) (+)= alpha * strip [rows][columns].
template <class TC>
LK_SIMD void store_strip(Strided<TC> c, bool add, float alpha, const float* strip,
                         std::int64_t rows, std::int64_t n, std::int64_t columns) {
  if (c.col == 1) {
    for (std::int64_t i = 0; i < rows; ++i) {
      TC* to = c.data + i * c.row;
      const float* from = strip + i * columns;
      if (add) {
#pragma omp simd
        for (std::int64_t j = 0; j < n; ++j) to[j] = narrow<TC>(widen(to[j]) + alpha * from[j]);
      } else {
#pragma omp simd
        for (std::int64_t j = 0; j < n; ++j) to[j] = narrow<TC>(alpha * from[j]);
      }
    }
  } else {
    for (std::int64_t j = 0; j < n; ++j) {
      TC* to = c.data + j * c.col;
      for (std::int64_t i = 0; i < rows; ++i) {
        float x = alpha * strip[i * columns + j];
        to[i * c.row] = narrow<TC>(add ? widen(to[i * c.row]) + x : x);
      }
    }
  }
}

std::int64_t blocks(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

// Converts to floats: columns of the right operand and rows of the left one, as they are packed.
template <class T>
LK_SIMD void widen_row(float* y, const T* x, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] = widen(x[i]);
}

// Packs one group of panels of b (K,N); only the very last panel may be narrow. Group g starts at
// column g * kPanels * wide of b and at the same place of `packed`.
template <class T>
void pack_group(const GemmTile& tile, Strided<const T> b, std::int64_t K, std::int64_t N,
                std::int64_t group, float* packed) {
  const std::int64_t wide = tile.wide(), begin = group * kPanels * wide;
  const std::int64_t end = std::min(N, begin + kPanels * wide), tail = (end - begin - 1) % wide + 1;
  const std::int64_t full = end - begin - tail;
  b.data += begin * b.col;
  packed += begin * K;
  pack_panels<T>(tile, b, K, full, wide, packed);
  b.data += full * b.col;
  pack_panels<T>(tile, b, K, tail, tail <= tile.narrow() ? tile.narrow() : wide, packed + full * K);
}

// K <= kBlockK of each of the equal blocks that a longer sum is made of.
std::int64_t block_length(std::int64_t K) { return blocks(K, blocks(K, kBlockK)); }

}  // namespace
}  // namespace lk::cpu
