#include "nn/cached_batch.h"

#include <algorithm>

namespace lk {
namespace {

// All vectors of a batch in one host vector, in the order in which `storage` holds them.
struct Host {
  std::vector<std::int32_t> ids, positions, cache_rows, offsets{0}, begins, ends, last, variants,
      virtual_rows, virtual_index;

  Host(const KvCache& cache, std::span<const SequencePart> parts) {
    check(!parts.empty(), "cached batch: no sequences");
    for (const SequencePart& part : parts) {
      check(!part.ids.empty(), "cached batch: a part without tokens");
      const std::int64_t have = cache.length(part.slot), first = part.slot * cache.capacity();
      const std::int64_t all = have + std::ssize(part.ids);
      check(all <= cache.capacity(), "KV cache: ", all, " tokens, room for ", cache.capacity());
      for (std::int64_t at = have; at < all; ++at) {
        positions.push_back(static_cast<std::int32_t>(at));
        cache_rows.push_back(static_cast<std::int32_t>(first + at));
      }
      for (std::int32_t id : part.ids) {
        if (id < 0) {
          virtual_rows.push_back(static_cast<std::int32_t>(ids.size()));
          virtual_index.push_back(virtual_id(id));  // is its own inverse
        }
        ids.push_back(std::max(id, 0));
      }
      offsets.push_back(static_cast<std::int32_t>(ids.size()));
      begins.push_back(static_cast<std::int32_t>(first));
      ends.push_back(static_cast<std::int32_t>(first + all));
      last.push_back(offsets.back() - 1);
      variants.push_back(part.variant);
    }
  }

  // Calls f for each vector, in a fixed order.
  template <class F>
  void each(F&& f) const {
    f(ids), f(positions), f(cache_rows), f(offsets), f(begins), f(ends), f(last), f(variants);
    f(virtual_rows), f(virtual_index);
  }
  std::vector<std::int32_t> joined() const {
    std::vector<std::int32_t> all;
    each([&](const auto& v) { all.insert(all.end(), v.begin(), v.end()); });
    return all;
  }
};

void fill(CachedBatch& batch, Host host) {
  const std::vector<std::int32_t> all = host.joined();
  batch.storage.backend().upload(batch.storage, all.data(), all.size() * sizeof(std::int32_t));
  batch.segments.host = std::move(host.offsets);
  batch.keys.begins = std::move(host.begins);
  batch.keys.ends = std::move(host.ends);
  batch.variants.host = std::move(host.variants);
}

}  // namespace

CachedBatch make_cached_batch(const KvCache& cache, std::span<const SequencePart> parts) {
  Host host(cache, parts);
  CachedBatch batch;
  batch.storage = cache.backend().empty(Tag::Workspace, DType::I32, {std::ssize(host.joined())});
  Tensor* const views[] = {&batch.ids,
                           &batch.positions,
                           &batch.cache_rows,
                           &batch.segments.offsets,
                           &batch.keys.device_begins,
                           &batch.keys.device_ends,
                           &batch.last,
                           &batch.variants.device,
                           &batch.virtual_rows.rows,
                           &batch.virtual_rows.index};
  std::int64_t at = 0, i = 0;
  host.each([&](const auto& v) {
    *views[i++] = batch.storage.slice_rows(at, at + std::ssize(v));
    at += std::ssize(v);
  });
  batch.keys.most = cache.capacity();
  fill(batch, std::move(host));
  return batch;
}

void refill_cached_batch(CachedBatch& batch, const KvCache& cache,
                         std::span<const SequencePart> parts) {
  Host host(cache, parts);
  check(host.offsets == batch.segments.host && host.virtual_rows.empty(),
        "cached batch: lengths differ from those that it was made for");
  fill(batch, std::move(host));
}

void advance_cache(KvCache& cache, std::span<const SequencePart> parts) {
  for (const SequencePart& part : parts)
    cache.set_length(part.slot, cache.length(part.slot) + std::ssize(part.ids));
}

}  // namespace lk
