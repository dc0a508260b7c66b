// The two orders of the rows of q and k. GGUF's llama stores them so that a rotary pair is
// adjacent: within a head of size D, stored row 2i + p is our (and Hugging Face's) row p * D/2 + i.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>

namespace lk {

// rows: whole heads, each row `cols` items (1 for a bias): values, or bytes of blocks. dst must not
// overlap.
template <class T>
void pairs_to_halves(std::span<const std::type_identity_t<T>> rows, std::int64_t head_dim,
                     std::int64_t cols, T* dst) {
  const std::int64_t n = static_cast<std::int64_t>(rows.size()) / cols, half = head_dim / 2;
  for (std::int64_t row = 0; row < n; ++row) {
    const std::int64_t head = row / head_dim, p = row % head_dim / half, i = row % half;
    const T* from = rows.data() + (head * head_dim + 2 * i + p) * cols;
    std::copy(from, from + cols, dst + row * cols);
  }
}

inline void halves_to_pairs(std::span<const float> rows, std::int64_t head_dim, std::int64_t cols,
                            float* dst) {
  const std::int64_t n = static_cast<std::int64_t>(rows.size()) / cols, half = head_dim / 2;
  for (std::int64_t row = 0; row < n; ++row) {
    const std::int64_t head = row / head_dim, p = row % head_dim / half, i = row % half;
    std::copy(rows.data() + row * cols, rows.data() + (row + 1) * cols,
              dst + (head * head_dim + 2 * i + p) * cols);
  }
}

}  // namespace lk
