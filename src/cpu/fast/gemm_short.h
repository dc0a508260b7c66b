// Products whose left operand a (M,K) is short, M <= kShort: packing b then takes about as long as multiplying with it. So
// a core packs kChain rows of a few panels by itself and multiplies while they are in its own cache, and no core waits for
// another. Sums have the order of multiply_blocks() (gemm.cpp): a row has the same bits for every M. Included by gemm.cpp
// alone.
#pragma once

#include <omp.h>

#include "cpu/fast/gemm_pack.h"

namespace lk::cpu {
namespace {

constexpr std::int64_t kShort = 256;  // most rows that a core multiplies with what it packs itself
constexpr std::int64_t kShortColumns = 2 * kWidest;  // at a time: whole panels
constexpr std::int64_t kWave = 8;                    // blocks of a long K at a time

// sums (M,N), with rows `sums_row` apart that have room for whole panels, = a (M,K) b (K,N) for K <= kBlockK, by the
// calling thread.
template <class T>
void multiply_alone(const GemmTile& tile, float* sums, std::int64_t sums_row, Strided<const T> a,
                    Strided<const T> b, std::int64_t M, std::int64_t N, std::int64_t K) {
  alignas(64) float packed[kChain * kShortColumns], left[kShort * kChain];
  const std::int64_t wide = tile.wide();
  // What is read several times is copied: rows that are pages apart share few places of the first-level cache.
  const bool copies = !std::is_same_v<T, float> || N > kShortColumns;
  for (std::int64_t k = 0; k < K; k += kChain) {
    const std::int64_t n_k = std::min(kChain, K - k);
    const Strided<const T> part{a.data + k * a.col, a.row, a.col};
    Strided<const float> from{left, n_k, 1};
    if (copies && a.col == 1) {
      for (std::int64_t i = 0; i < M; ++i) widen_row(left + i * n_k, part.data + i * a.row, n_k);
    } else if (copies) {
      from = {left, 1, M};
      for (std::int64_t i = 0; i < n_k; ++i) widen_row(left + i * M, part.data + i * a.col, M);
    } else if constexpr (std::is_same_v<T, float>) {
      from = part;
    }
    for (std::int64_t j0 = 0; j0 < N; j0 += kShortColumns) {
      const std::int64_t n = std::min(kShortColumns, N - j0);
      pack_group<T>(tile, {b.data + k * b.row + j0 * b.col, b.row, b.col}, n_k, n, 0, packed);
      for (std::int64_t j = 0; j < n; j += wide) {
        const int width = n - j <= tile.narrow() ? tile.narrow() : tile.wide();
        tile.multiply(M, n_k, from.data, from.row, from.col, packed + j * n_k, width, width,
                      sums + j0 + j, sums_row, k > 0);
      }
    }
  }
}

// Whether multiply_short() does better than blocks that all cores pack together: not with few columns, nor for a thin
// product, whose b is smaller than c. Scratch depends on it, so the number of threads must not count.
bool is_short(std::int64_t M, std::int64_t N, std::int64_t K) {
  return M <= kShort && N >= 8 * kShortColumns && K >= kStrip;
}

// c (M,N) (+)= alpha a (M,K) b (K,N) for M <= kShort.
template <class T, class TC>
void multiply_short(Strided<TC> c, bool add, float alpha, Strided<const T> a, Strided<const T> b,
                    std::int64_t M, std::int64_t N, std::int64_t K) {
  const GemmTile& tile = best_gemm_tile();
  const std::int64_t block_k = block_length(K);
  // All rows at a time, unless that leaves cores without work.
  const std::int64_t n_groups = blocks(N, kShortColumns);
  std::int64_t n_units = 1;
  while (n_units * n_groups < 4 * omp_get_max_threads() && M >= (n_units + 1) * kStrip / 2)
    ++n_units;
  const std::int64_t unit_rows = blocks(M, n_units);
#pragma omp parallel for schedule(dynamic) if (M * N * K > kSerial)
  for (std::int64_t unit = 0; unit < n_units * n_groups; ++unit) {
    alignas(64) float sums[kShort * kShortColumns];
    const std::int64_t i = unit % n_units * unit_rows, m = std::min(unit_rows, M - i);
    const std::int64_t j = unit / n_units * kShortColumns, n = std::min(kShortColumns, N - j);
    for (std::int64_t k = 0; k < K; k += block_k) {
      multiply_alone<T>(tile, sums, kShortColumns, {a.data + i * a.row + k * a.col, a.row, a.col},
                        {b.data + k * b.row + j * b.col, b.row, b.col}, m, n,
                        std::min(block_k, K - k));
      store_strip<TC>({c.data + i * c.row + j * c.col, c.row, c.col}, add || k > 0, alpha, sums, m,
                      n, kShortColumns);
    }
  }
}

// Whether K has blocks enough for multiply_long(); and the floats of its scratch.
bool is_long(std::int64_t M, std::int64_t K) { return M <= kShort && K > 2 * kWave * kBlockK; }
std::int64_t long_floats(const GemmTile& tile, std::int64_t M, std::int64_t N) {
  return kWave * M * blocks(N, tile.wide()) * tile.wide();
}

// c (M,N) (+)= alpha a (M,K) b (K,N) for M <= kShort and long K: the gradient of a head's input. Cores take blocks
// of K, so that both operands are read once, and in order; the blocks' sums are added in theirs.
template <class T>
void multiply_long(Backend& backend, Strided<float> c, bool add, float alpha, Strided<const T> a,
                   Strided<const T> b, std::int64_t M, std::int64_t N, std::int64_t K) {
  const GemmTile& tile = best_gemm_tile();
  const std::int64_t block_k = block_length(K), n_blocks = blocks(K, block_k);
  const std::int64_t row = blocks(N, tile.wide()) * tile.wide(), size = M * row;
  Tensor scratch = backend.empty(Tag::Workspace, DType::F32, {long_floats(tile, M, N)});
  float* const sums = scratch.data<float>();
  const std::int64_t n_parts = blocks(omp_get_max_threads(), kWave);  // of the columns
  const std::int64_t part = blocks(row / tile.wide(), n_parts) * tile.wide();
  for (std::int64_t first = 0; first < n_blocks; first += kWave) {
    const std::int64_t wave = std::min(kWave, n_blocks - first);
#pragma omp parallel
    {
#pragma omp for schedule(dynamic)
      for (std::int64_t unit = 0; unit < wave * n_parts; ++unit) {
        const std::int64_t w = unit / n_parts, k = (first + w) * block_k;
        const std::int64_t j = unit % n_parts * part, n = std::min(part, N - j);
        if (n > 0)
          multiply_alone<T>(tile, sums + w * size + j, row, {a.data + k * a.col, a.row, a.col},
                            {b.data + k * b.row + j * b.col, b.row, b.col}, M, n,
                            std::min(block_k, K - k));
      }
#pragma omp for
      for (std::int64_t i = 0; i < M; ++i)
        for (std::int64_t w = 0; w < wave; ++w)
          store_strip<float>({c.data + i * c.row, c.row, c.col}, add || first + w > 0, alpha,
                             sums + w * size + i * row, 1, N, row);
    }
  }
}

}  // namespace
}  // namespace lk::cpu
