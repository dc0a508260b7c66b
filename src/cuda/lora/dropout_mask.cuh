// Dropout masks on the device: drawn in octets (tensor/philox.h), as one bit per element in shared
// memory while a tile is multiplied. LoRA's forward keeps the bits, and its backward reads them.
#pragma once

#include "cuda/mma.cuh"
#include "cuda/pack.cuh"
#include "tensor/philox.h"
#include "tensor/thin_plan.h"

namespace lk {

// Bit i says whether element 8 octet + i is kept.
__device__ __forceinline__ std::uint32_t keep_bits(const RandomKey& resolved, std::uint64_t octet,
                                                   std::uint32_t threshold) {
  const Philox4 draw = philox_octet(resolved, octet);
  std::uint32_t bits = 0;
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    bits |= ((draw.v[word] & 0xffffu) >= threshold ? 1u : 0u) << (2 * word);
    bits |= ((draw.v[word] >> 16) >= threshold ? 2u : 0u) << (2 * word);
  }
  return bits;
}

// A mask with all ones over those halves of a pair of BF16 whose bits are set: the top bits of byte
// BYTE of `low` and of `high`.
template <int BYTE>
__device__ __forceinline__ std::uint32_t pair_mask(std::uint32_t low, std::uint32_t high) {
  // A selector of 8 + i repeats the sign of byte i; bytes of the second operand follow the first's.
  // Written in PTX: only three bits of __byte_perm's selectors are documented, and nvcc drops the
  // fourth.
  std::uint32_t mask;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(mask) : "r"(low), "r"(high), "n"(0xcc88 + 0x1111 * BYTE));
  return mask;
}

// The bits of 64 rows x 128 columns for each of several projections, one byte per octet.
struct MaskTile {
  static constexpr int kRows = ThinPlan::kMaskRows, kColumns = ThinPlan::kColumns;
  static constexpr int kOctets = kColumns / 8, kBytes = kRows * kOctets;
  unsigned char* memory;

  // The bits of octets `octet` (even) and octet + 1 of a row.
  __device__ __forceinline__ std::uint32_t two_octets(int part, int row, int octet) const {
    return *reinterpret_cast<const std::uint16_t*>(memory + part * kBytes + row * kOctets + octet);
  }
};

// The masks of a wide matrix in a launch: one for each projection. All threads of a block call draw
// and fetch, of which there are THREADS.
template <int PARTS>
struct DropoutMasks {
  RandomKey key;
  std::uint32_t threshold, sites[PARTS];
  i64 columns;  // of the wide matrix, a multiple of 8
  int n_parts;
  // ThinPlan::kept_bits: MaskTiles, from left to right and then down. Null: nothing is kept.
  unsigned char* kept;

  // The kept tile of the first part at (row, column), multiples of the tile's size.
  __device__ __forceinline__ unsigned char* kept_at(i64 row, i64 column) const {
    const i64 across = (columns + MaskTile::kColumns - 1) / MaskTile::kColumns;
    return kept + (row / MaskTile::kRows * across + column / MaskTile::kColumns) * n_parts *
                      MaskTile::kBytes;
  }

  // Forward: draws all parts' tiles at (row, column) and keeps them. Each thread draws four octets of
  // a row. Elements beyond the matrix are drawn too: nobody reads them.
  template <int THREADS>
  __device__ __forceinline__ void draw(MaskTile tile, i64 row, i64 column) const {
    static_assert(4 * THREADS == MaskTile::kBytes);
    constexpr int kWords = MaskTile::kOctets / 4;  // in a row
    const int word = threadIdx.x;
    const auto first = static_cast<std::uint64_t>(((row + word / kWords) * columns + column) / 8 +
                                                  word % kWords * 4);
    RandomKey now = key.resolved();
    for (int part = 0; part < n_parts; ++part) {
      now.site = sites[part];
      std::uint32_t bits = 0;
#pragma unroll
      for (int octet = 0; octet < 4; ++octet)
        bits |= keep_bits(now, first + octet, threshold) << (8 * octet);
      const int at = part * MaskTile::kBytes + 4 * word;
      *reinterpret_cast<std::uint32_t*>(tile.memory + at) = bits;
      if (kept) *reinterpret_cast<std::uint32_t*>(kept_at(row, column) + at) = bits;
    }
  }

  // Backward: starts copying all parts' tiles at (row, column), which lie one after the other.
  template <int THREADS>
  __device__ __forceinline__ void fetch(MaskTile tile, i64 row, i64 column) const {
    static_assert(16 * THREADS >= PARTS * MaskTile::kBytes);
    const int at = 16 * threadIdx.x;
    if (at < n_parts * MaskTile::kBytes)
      copy_async_16(shared_address(tile.memory) + at, kept_at(row, column) + at, true);
  }
};

}  // namespace lk
