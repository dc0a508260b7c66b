// Attention of a few new queries to a long cache: see decode_attention.cpp.
#pragma once

#include <vector>

#include "cpu/fast/flash_attention.h"

namespace lk::cpu {

// Documents with at most this many queries take the decoding path: laying their keys out for tiles
// would cost more than the products.
inline constexpr std::int64_t kDecodeQueries = 4;

template <class T>
void decode_attention(Matrix<T> o, Matrix<float> lse, Matrix<T> q, Matrix<T> k, Matrix<T> v,
                      const AttentionShape& shape, const std::vector<Document>& docs);

}  // namespace lk::cpu
