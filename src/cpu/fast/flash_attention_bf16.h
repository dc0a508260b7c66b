// Attention in blocks on processors with BF16 arithmetic: see flash_attention_bf16.cpp.
#pragma once

#include <vector>

#include "cpu/fast/bf16_tile.h"
#include "cpu/fast/flash_attention.h"

namespace lk::cpu {

// flash_attention_forward() and flash_attention_backward() with probabilities and their gradients
// rounded to BF16 before they are multiplied.
void bf16_attention_forward(const Bf16Tile& tile, Backend& backend, Matrix<bf16> o,
                            Matrix<float> lse, Matrix<bf16> q, Matrix<bf16> k, Matrix<bf16> v,
                            const AttentionShape& shape, const std::vector<Document>& docs);
void bf16_attention_backward(const Bf16Tile& tile, Backend& backend, Matrix<bf16> dq,
                             Matrix<bf16> dk, Matrix<bf16> dv, Matrix<bf16> dout, Matrix<bf16> q,
                             Matrix<bf16> k, Matrix<bf16> v, Matrix<bf16> o, Matrix<float> lse,
                             const AttentionShape& shape, const std::vector<Document>& docs);

}  // namespace lk::cpu
