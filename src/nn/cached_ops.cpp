#include "nn/cached_ops.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops/by_head.h"

namespace lk::cached {

void linear_parts(Backend& backend, const Tensor& x, const MadeInput* input,
                  std::span<const LinearPart> parts) {
  CacheKernels* kernels = backend.cache_kernels();
  if (kernels && kernels->linear_parts(x, input, parts)) return;
  if (input) {
    if (input->gate) {
      backend.gated_forward(input->act, input->made, input->gate, x);
    } else {
      Tensor rstd = backend.empty(Tag::Workspace, stat_dtype(x.dtype()), {x.rows()});
      backend.rmsnorm_forward(input->made, rstd, x, *input->gain, input->eps);
    }
    return linear_parts(backend, input->made, nullptr, parts);
  }
  for (const LinearPart& part : parts) {
    backend.linear_forward(part.y, x, *part.w);
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

void attend(Backend& backend, const CachedAttention& a) {
  CacheKernels* kernels = backend.cache_kernels();
  if (kernels && kernels->attend(a)) return;
  const int D = a.shape.head_dim;
  const auto normed = [&](const Tensor& x, const Weight* gain) {
    if (!gain) return x;
    Tensor y = backend.empty(Tag::Workspace, x.dtype(), x.shape());
    Tensor rstd = backend.empty(Tag::Workspace, stat_dtype(x.dtype()), {x.rows() * (x.cols() / D)});
    backend.rmsnorm_forward(by_head(y, D), rstd, by_head(x, D), *gain, a.eps);
    return y;
  };
  const Tensor q = normed(a.q, a.q_gain), k = normed(a.k, a.k_gain);
  rope_into_cache(backend, q, k, a.v, a.cache, a.rotation.table, a.rotation.positions, D);
  if (a.made_q) backend.copy(a.made_q, q);
  backend.attention_forward(a.o, a.lse, q, a.cache.keys, a.cache.values, a.shape, a.q_seg,
                            a.k_rows);
}

void choose_next(Backend& backend, const NextInputs& next, const Tensor& logits) {
  CacheKernels* kernels = backend.cache_kernels();
  if (kernels && kernels->choose_next(next, logits)) return;
  const std::vector<double> all = to_host_f64(logits);
  std::vector<float> chosen;
  std::vector<std::int32_t> ids;
  for (auto row = all.begin(); row != all.end(); row += logits.cols()) {
    const auto best = std::max_element(row, row + logits.cols(), [](double a, double b) {
      return std::isnan(a) ? !std::isnan(b) : a < b;
    });
    ids.push_back(std::isfinite(*best) ? static_cast<std::int32_t>(best - row) : 0);
    chosen.push_back(std::isfinite(*best) ? static_cast<float>(ids.back()) : NAN);
  }
  backend.upload(next.chosen, chosen.data(), next.chosen.bytes());
  backend.upload(next.ids, ids.data(), next.ids.bytes());
  for (const Tensor& x : {next.positions, next.cache_rows, next.key_ends}) {
    std::vector<std::int32_t> values = to_host<std::int32_t>(x);
    for (std::int32_t& v : values) ++v;
    backend.upload(x, values.data(), x.bytes());
  }
}

}  // namespace lk::cached
