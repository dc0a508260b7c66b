// Encodes F32 in ggml's tensor types: the inverse of ggml_blocks.h, for the types that we write.
// Pure functions over bytes. Bytes equal those of the gguf package's quantize() for every finite
// input (so F32 products and sums are rounded one by one: no fused multiply-add here, see
// meson.build); its source is ggml's quantize_row_*_ref. The K types, which that package does not
// write, are in ggml_encode_k.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lk {

// How a tensor's values lie in a file.
struct StorageType {
  const char* name;            // "Q4_1", as in ggml_blocks.h; "U8", as in safetensors
  std::uint32_t block_values;  // values per block; a row is whole blocks
  std::uint32_t block_bytes;
};

struct GgmlEncoder : StorageType {
  std::uint32_t id;         // as stored in a GGUF file
  std::uint32_t file_type;  // general.file_type of a model whose matrices are of this type
  bool quantised;           // blocks of integers under a scale, not floating-point numbers
  const char* narrow;       // the type of rows that are not whole blocks; null: all are
  // Reads n_blocks * block_values finite floats and writes n_blocks * block_bytes bytes. What the
  // type can't hold (F16 and the scales of the Q types end at 65,504) decodes to a number that is
  // not finite: callers that can't rule it out decode and look.
  void (*encode)(const float* src, std::int64_t n_blocks, std::uint8_t* dst);
};

// The encoder of a type that we write, by ggml's name; null for any other name.
const GgmlEncoder* find_ggml_encoder(std::string_view name);
// Their names as users write them: "f32, f16, ... or q2_k".
const std::string& ggml_encoder_names();

// Rounds to the nearest half, ties to even; above 65,519 to infinity; NaN stays NaN.
std::uint16_t float_to_half(float x);

}  // namespace lk
