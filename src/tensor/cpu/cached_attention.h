// Attention of a few new queries over a cache of keys: what generation does for each token.
#pragma once

#include <vector>

#include "tensor/cpu/flash_attention.h"

namespace lk::cpu {

// A document that is better read once, where it lies, than laid out for tiles. It depends on the
// document alone, so that its results do not depend on the others of its batch.
inline bool has_few_queries(const Document& doc) {
  return doc.queries() <= 4 && doc.keys() > doc.queries();
}

// As flash_attention_forward, one query of one head at a time.
template <class T>
void cached_attention_forward(Matrix<T> o, Matrix<float> lse, Matrix<T> q, Matrix<T> k, Matrix<T> v,
                              const AttentionShape& shape, const std::vector<Document>& docs);

}  // namespace lk::cpu
