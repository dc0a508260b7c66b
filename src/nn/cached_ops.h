// Operations of a step of generation with a KV cache. The device's kernels run them where they suit
// (tensor/cache_kernels.h); elsewhere they are composed of the core's ops, which is their
// definition.
#pragma once

#include <span>

#include "tensor/cache_kernels.h"

namespace lk::cached {

// Each part's y = addend + n wᵀ, where n is x (T,K), or what `input` makes of it if that is not null.
void linear_parts(Backend& backend, const Tensor& x, const MadeInput* input,
                  std::span<const LinearPart> parts);
// Rotates q (T,H*D) and k (T,G*D) in place, unless `table` is undefined, and writes k and v to rows
// (T) of the caches. May leave k's own memory unrotated.
void rope_into_cache(Backend& backend, const Tensor& q, const Tensor& k, const Tensor& v,
                     const CacheRows& cache, const Tensor& table, const Tensor& positions,
                     int head_dim);
// Norms q and k, rotates them, adds k and v to the cache, and computes o and lse over the cache.
void attend(Backend& backend, const CachedAttention& a);
// Chooses the most likely token of each row of logits (n,V), as sample_token() does: the largest, the
// lowest id on ties, NaN passed over. V is at most 2^24.
void choose_next(Backend& backend, const NextInputs& next, const Tensor& logits);

}  // namespace lk::cached
