// A block-quantised storage type as ggml defines it: what a Weight needs to know about it.
// io/ggml_blocks.cpp has the table of all types.
#pragma once

#include <cstdint>

namespace lk {

struct GgmlType {
  std::uint32_t id;            // as stored in the file
  const char* name;            // "Q4_1"
  std::uint32_t block_values;  // values per block; a row is whole blocks
  std::uint32_t block_bytes;
  // Writes n_blocks * block_values floats; null for types whose size is known but which are not
  // read.
  void (*decode)(const std::uint8_t* blocks, std::int64_t n_blocks, float* dst);

  bool quantised() const { return block_values > 1; }
  // Bytes of a row of `cols` values, a multiple of block_values.
  std::int64_t row_bytes(std::int64_t cols) const { return cols / block_values * block_bytes; }
};

// What the nibbles of IQ4_NL and IQ4_XS, and of MXFP4 (doubled), stand for.
inline constexpr float kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                         1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr float kMxfp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Scale and minimum j of the eight that Q4_K and Q5_K pack in 12 bytes, 6 bits each. The first four
// scales and minimums are the low bits of bytes 0-3 and 4-7; the last four have four bits in bytes
// 8-11 and two in the top bits of the first eight bytes.
struct KScale {
  std::uint8_t scale, minimum;
};
inline KScale k_scale(const std::uint8_t* packed, int j) {
  const auto byte = [](int x) { return static_cast<std::uint8_t>(x); };
  if (j < 4) return {byte(packed[j] & 63), byte(packed[j + 4] & 63)};
  return {byte((packed[j + 4] & 15) | packed[j - 4] >> 6 << 4),
          byte(packed[j + 4] >> 4 | packed[j] >> 6 << 4)};
}

}  // namespace lk
