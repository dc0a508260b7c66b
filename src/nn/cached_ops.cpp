#include "nn/cached_ops.h"

namespace lk::cached {

void linear_parts(Backend& backend, const Tensor& x, const InputNorm* norm,
                  std::span<const LinearPart> parts) {
  CacheKernels* kernels = backend.cache_kernels();
  if (kernels && kernels->linear_parts(x, norm, parts)) return;
  if (norm) {
    Tensor rstd = backend.empty(Tag::Workspace, stat_dtype(x.dtype()), {x.rows()});
    backend.rmsnorm_forward(norm->normed, rstd, x, *norm->gain, norm->eps);
  }
  for (const LinearPart& part : parts) {
    backend.linear_forward(part.y, norm ? norm->normed : x, *part.w);
    if (part.addend) backend.add(part.y, part.y, part.addend);
  }
}

void rope_into_cache(Backend& backend, const Tensor& q, const Tensor& k, const Tensor& v,
                     const CacheRows& cache, const Tensor& table, const Tensor& positions,
                     int head_dim) {
  CacheKernels* kernels = backend.cache_kernels();
  if (kernels && kernels->rope_into_cache(q, k, v, cache, table, positions, head_dim)) return;
  if (table) {
    backend.rope(q, GradMode::Write, q, table, positions, head_dim, false);
    backend.rope(k, GradMode::Write, k, table, positions, head_dim, false);
  }
  backend.put_rows(cache.keys, k, cache.rows);
  backend.put_rows(cache.values, v, cache.rows);
}

}  // namespace lk::cached
