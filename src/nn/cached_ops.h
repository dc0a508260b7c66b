// Operations of a step of generation with a KV cache: the device's kernels run them where they suit
// (tensor/cache_kernels.h); elsewhere they are composed of the core's ops, which is their definition.
#pragma once

#include <span>

#include "tensor/cache_kernels.h"

namespace lk::cached {

// Each part's y = addend + n wᵀ, n being x (T,K), or its norm if `norm` is not null.
void linear_parts(Backend& backend, const Tensor& x, const InputNorm* norm,
                  std::span<const LinearPart> parts);
// q (T,H*D) and k (T,G*D) are rotated in place, unless `table` is undefined; then rows (T) of the
// caches are k's and v's rows. May leave k as it was.
void rope_into_cache(Backend& backend, const Tensor& q, const Tensor& k, const Tensor& v,
                     const CacheRows& cache, const Tensor& table, const Tensor& positions,
                     int head_dim);

}  // namespace lk::cached
