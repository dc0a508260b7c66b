// ggml's tensor types: their blocks, and how they become F32. Pure functions over bytes; adding a
// type is one decoder and one row of the table. Layouts: ggml's ggml-common.h and ggml-quants.c.
// Values equal ggml's bit for bit: every product of a scale (11 significant bits) and a quantum (at
// most 8) is exact in F32, so only the final rounding of the sum counts, with or without fused
// multiply-add.
#pragma once

#include <cstdint>

namespace lk {

struct GgmlType {
  std::uint32_t id;            // as stored in the file
  const char* name;            // "Q4_1"
  std::uint32_t block_values;  // values per block; a row is whole blocks
  std::uint32_t block_bytes;
  // Writes n_blocks * block_values floats; null for types whose size we know but do not read.
  void (*decode)(const std::uint8_t* blocks, std::int64_t n_blocks, float* dst);
};

// Null if `id` names no type (never was one, or was removed from ggml).
const GgmlType* find_ggml_type(std::uint64_t id);

// IEEE half to single, exactly (subnormals, infinities; NaN stays NaN).
void decode_f16(const std::uint8_t* src, std::int64_t n, float* dst);
void decode_bf16(const std::uint8_t* src, std::int64_t n, float* dst);

}  // namespace lk
