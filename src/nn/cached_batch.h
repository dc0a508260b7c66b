// CachedBatch: the next tokens of some sequences of a KvCache, laid end to end on the device.
#pragma once

#include <span>
#include <vector>

#include "nn/kv_cache.h"
#include "nn/places.h"

namespace lk {

// New tokens of one sequence; they follow what its slot holds.
struct SequencePart {
  std::int64_t slot = 0;
  std::vector<std::int32_t> ids;  // virtual_id(j) for virtual token j of nn/places.h
  std::int32_t variant = -1;      // see RowVariants in tensor/adapter_kernels.h
};

// What stands for the id of virtual token j.
constexpr std::int32_t virtual_id(std::int64_t j) { return static_cast<std::int32_t>(-1 - j); }
// A sequence without the virtual tokens that it begins with.
inline std::span<const std::int32_t> behind_virtual(std::span<const std::int32_t> ids) {
  while (!ids.empty() && ids[0] < 0) ids = ids.subspan(1);
  return ids;
}

struct CachedBatch {
  Tensor ids, positions;  // (T) I32
  Tensor cache_rows;      // (T) I32: rows of the cache for their keys and values
  Segments segments;      // one for each part
  KeyRows keys;           // of each part: cached and new
  Tensor last;            // (n) I32: the last token of each part
  RowVariants variants;
  VirtualRows virtual_rows;  // empty tensors without any
  std::int64_t n_tokens() const { return segments.total(); }
  Tensor storage;  // (5 T ...) I32: holds all of the above, so that one copy uploads it
};

// Lays the parts end to end and uploads them. Throws Error if a slot has no room for its part. The
// cache is not changed: call advance_cache() once the pass has been submitted.
CachedBatch make_cached_batch(const KvCache& cache, std::span<const SequencePart> parts);
// make_cached_batch() into `batch`, which was made from parts of the same lengths: its memory stays
// where it is.
void refill_cached_batch(CachedBatch& batch, const KvCache& cache,
                         std::span<const SequencePart> parts);
// Lengthens each part's slot by the part.
void advance_cache(KvCache& cache, std::span<const SequencePart> parts);

}  // namespace lk
