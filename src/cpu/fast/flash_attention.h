// Attention in blocks: see flash_attention.cpp.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"

namespace lk::cpu {

// One document: its queries are rows [q0, q1), its keys rows [k0, k1), and its last query is
// aligned with its last key.
struct Document {
  std::int64_t q0, q1, k0, k1;
  std::int64_t queries() const { return q1 - q0; }
  std::int64_t keys() const { return k1 - k0; }
  // Query i (counted within the document) sees keys [first_key(i), end_key(i)).
  std::int64_t end_key(std::int64_t i) const { return i + keys() - queries() + 1; }
  std::int64_t first_key(std::int64_t i, int window) const {
    return window > 0 ? std::max<std::int64_t>(0, end_key(i) - window) : 0;
  }
};

template <class T>
void flash_attention_forward(Backend& backend, Matrix<T> o, Matrix<float> lse, Matrix<T> q,
                             Matrix<T> k, Matrix<T> v, const AttentionShape& shape,
                             const std::vector<Document>& docs);

template <class T>
void flash_attention_backward(Backend& backend, Matrix<T> dq, Matrix<T> dk, Matrix<T> dv,
                              Matrix<T> dout, Matrix<T> q, Matrix<T> k, Matrix<T> v, Matrix<T> o,
                              Matrix<float> lse, const AttentionShape& shape,
                              const std::vector<Document>& docs);

}  // namespace lk::cpu
