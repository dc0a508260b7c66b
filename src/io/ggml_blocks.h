// ggml's tensor types: their blocks, and how they become F32. Pure functions over bytes; adding a
// type is one decoder and one row of the table. Layouts: ggml's ggml-common.h and ggml-quants.c.
// Values equal ggml's bit for bit: every product of a scale (11 significant bits) and a quantum (at
// most 8) is exact in F32, so only the final rounding of the sum counts, with or without fused
// multiply-add.
#pragma once

#include <cstdint>

#include "tensor/ggml_type.h"

namespace lk {

// The type that GGUF files call `id`; null if it never was one or was removed from ggml.
const GgmlType* find_ggml_type(std::uint64_t id);

// Widens an IEEE half to single, exactly (subnormals and infinities too; NaN stays NaN).
void decode_f16(const std::uint8_t* src, std::int64_t n, float* dst);
void decode_bf16(const std::uint8_t* src, std::int64_t n, float* dst);

}  // namespace lk
