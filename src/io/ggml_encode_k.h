// Encodes F32 in ggml's K types: blocks of 256 values in groups of 16 or 32, each group with a small
// integer scale (and minimum) under the block's own. Layouts: io/ggml_blocks.cpp.
//
// Any codes decode alike, so which ones a group gets is the encoder's affair: here the pair of scale and
// codes, of some candidates, with the least sum of squared errors. Bytes are ours, not llama.cpp's.
#pragma once

#include <cstdint>

namespace lk {

// As GgmlEncoder::encode has it.
void encode_q2_k(const float* src, std::int64_t n_blocks, std::uint8_t* dst);
void encode_q3_k(const float* src, std::int64_t n_blocks, std::uint8_t* dst);
void encode_q4_k(const float* src, std::int64_t n_blocks, std::uint8_t* dst);
void encode_q5_k(const float* src, std::int64_t n_blocks, std::uint8_t* dst);
void encode_q6_k(const float* src, std::int64_t n_blocks, std::uint8_t* dst);

}  // namespace lk
