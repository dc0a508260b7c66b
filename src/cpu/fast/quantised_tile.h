// The innermost loops of a product with a quantised matrix: int8 activations times 4- to 8-bit
// weights. quantised_tile.cpp is compiled once per instruction set; quantised_linear.cpp packs
// weights, rounds activations and picks the best set that the processor has.
//
// This header and quantised_tile.cpp use no inline function of any other header: see gemm_tile.h.
//
// Note [Packed blocks]. Rows of a weight lie in groups of 16, block by block (32 values of K), so
// that one vector holds the same place of 16 rows and no sum runs across a vector. A block is
//
//     its scales for 16 rows, then its quanta: 64 bytes at a time, four bytes per row.
//
// Four bytes are 4 values of K; in nibbles 8, the first four in the low halves. What ggml scales by
// a half stays a half. The 6-bit scales of the K types become bytes; the halves that multiply them
// lie in front of the eight blocks that share them. No format grows by more than 3 %, except where
// quanta of 5 and 6 bits become bytes.
#pragma once

#include <cstdint>

namespace lk::cpu {

inline constexpr int kBlock = 32;       // values of K that share an activation's scale
inline constexpr int kGroupRows = 16;   // rows of a weight packed together
inline constexpr int kSuperBlocks = 8;  // blocks that share the halves of a K type

// How a value is made of its quantum q; d and m are halves, s and t bytes.
enum class Scales : std::uint8_t {
  Plain,    // d q                       d[16]
  Minimum,  // d q + m                   d[16], m[16]
  Groups,   // d s q - m t   in front of 8 blocks: d[16], m[16]; in a block: s[16], t[16]
  Halves,   // d s q         in front of 8 blocks: d[16]; in a block: s[16], t[16] (t for k >= 16)
};
enum class Quanta : std::uint8_t {
  Nibbles,  // 0 ... 15
  Bytes,    // 0 ... 63
  Signed,   // -128 ... 127
};

struct BlockLayout {
  std::uint32_t type;  // ggml's number
  Quanta quanta;
  Scales scales;
  int offset;  // subtracted from each quantum

  constexpr int quanta_bytes() const { return quanta == Quanta::Nibbles ? 256 : 512; }
  constexpr bool super() const { return scales == Scales::Groups || scales == Scales::Halves; }
  // Bytes in front of kSuperBlocks blocks, and in front of each block's quanta.
  constexpr int super_bytes() const {
    return scales == Scales::Groups ? 64 : scales == Scales::Halves ? 32 : 0;
  }
  constexpr int scale_bytes() const { return scales == Scales::Minimum ? 64 : 32; }
  // Bytes of a group of rows; n_blocks is a multiple of kSuperBlocks where super().
  constexpr std::int64_t group_bytes(std::int64_t n_blocks) const {
    return n_blocks * (scale_bytes() + quanta_bytes()) + n_blocks / kSuperBlocks * super_bytes();
  }
};

// The types that have kernels (ggml's numbers: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K).
inline constexpr BlockLayout kBlockLayouts[] = {
    {2, Quanta::Nibbles, Scales::Plain, 8}, {3, Quanta::Nibbles, Scales::Minimum, 0},
    {6, Quanta::Bytes, Scales::Plain, 16},  {7, Quanta::Bytes, Scales::Minimum, 0},
    {8, Quanta::Signed, Scales::Plain, 0},  {12, Quanta::Nibbles, Scales::Groups, 0},
    {13, Quanta::Bytes, Scales::Groups, 0}, {14, Quanta::Bytes, Scales::Halves, 32},
};
inline constexpr int kLayouts = sizeof kBlockLayouts / sizeof kBlockLayouts[0];

// Activations rounded to int8: x = d q, a scale for each block of each row.
struct RoundedRows {
  const std::int8_t* q;  // (M, K)
  const float* d;        // (M, K/32)
  const float* sum;      // (M, K/32): d times the sum of the block's q
  const std::int32_t*
      correction;         // (M, K/32), for Scales::Halves (M, K/16): -offset times that sum
  std::int64_t n_blocks;  // K / 32
};

struct QuantisedTile {
  const char* name;
  // What a correction needs in addition to the layout's offset, for Quanta::Signed: the instruction
  // takes unsigned bytes, so 128 is added to each quantum.
  int signed_offset;
  // out (M,16) = x (M,K) times the 16 rows of a group, transposed; `layout` is an index into
  // kBlockLayouts. A row's result depends neither on M nor on the instruction set.
  void (*multiply)(int layout, const std::uint8_t* group, const RoundedRows& x, std::int64_t M,
                   float* out, std::int64_t out_row);
};

namespace isa_q_v3 {
extern const QuantisedTile quantised_tile;
}
namespace isa_q_v3_vnni {
extern const QuantisedTile quantised_tile;
}
namespace isa_q_v4_vnni {
extern const QuantisedTile quantised_tile;
}

}  // namespace lk::cpu
