// CachedBatch: the next tokens of some sequences of a KvCache, laid end to end on the device.
#pragma once

#include <span>
#include <vector>

#include "nn/kv_cache.h"
#include "nn/linear_map.h"

namespace lk {

// New tokens of one sequence. They follow what the slot holds.
struct SequencePart {
  std::int64_t slot = 0;
  std::vector<std::int32_t> ids;
  std::int32_t variant = -1;  // see RowVariants
};

struct CachedBatch {
  Tensor ids, positions;  // (T) I32
  Tensor cache_rows;      // (T) I32: where their keys and values go
  Segments segments;      // the parts
  KeyRows keys;           // of each part: old and new
  Tensor last;            // (n) I32: the last token of each part
  RowVariants variants;
  std::int64_t n_tokens() const { return segments.total(); }
  Tensor storage;  // (5 T ...) I32: all of the above, so that one copy uploads it
};

// Throws Error if a slot has no room for its part. The cache is not changed; once the pass was
// submitted, advance_cache() it.
CachedBatch make_cached_batch(const KvCache& cache, std::span<const SequencePart> parts);
// The same into `batch`, made from parts of the same lengths: its memory stays where it is.
void refill_cached_batch(CachedBatch& batch, const KvCache& cache,
                         std::span<const SequencePart> parts);
// Lengthens the slots by their parts.
void advance_cache(KvCache& cache, std::span<const SequencePart> parts);

}  // namespace lk
