// Dropout masks on the device: drawn in octets (tensor/philox.h), kept as one bit per element in
// shared memory while a tile is multiplied, and never stored.
#pragma once

#include "cuda/pack.cuh"
#include "tensor/philox.h"

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
  static constexpr int kRows = 64, kOctets = 16, kBytes = kRows * kOctets;
  unsigned char* memory;

  // The bits of octets `octet` (even) and octet + 1 of a row.
  __device__ __forceinline__ std::uint32_t two_octets(int part, int row, int octet) const {
    return *reinterpret_cast<const std::uint16_t*>(memory + part * kBytes + row * kOctets + octet);
  }
  __device__ __forceinline__ std::uint32_t octet(int part, int row, int at) const {
    return memory[part * kBytes + row * kOctets + at];
  }
};

// What dropout needs in a launch: one site for each projection.
template <int PARTS>
struct DropoutArgs {
  RandomKey key;
  std::uint32_t threshold, sites[PARTS];
  i64 columns;  // of the masked tensor, a multiple of 8

  // Draws a tile at (row, column) with all THREADS of a block; column is a multiple of 8.
  template <int THREADS>
  __device__ __forceinline__ void draw(MaskTile tile, int n_parts, i64 row, i64 column) const {
    RandomKey now = key.resolved();
    for (int part = 0; part < n_parts; ++part) {
      now.site = sites[part];
#pragma unroll 2
      for (int i = threadIdx.x; i < MaskTile::kBytes; i += THREADS) {
        const auto element = static_cast<std::uint64_t>((row + i / MaskTile::kOctets) * columns +
                                                        column + i % MaskTile::kOctets * 8);
        tile.memory[part * MaskTile::kBytes + i] =
            static_cast<unsigned char>(keep_bits(now, element / 8, threshold));
      }
    }
  }
};

}  // namespace lk
