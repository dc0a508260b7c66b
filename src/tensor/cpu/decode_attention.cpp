// Attention of a few new queries: each key and value is read where it lies in the cache, once per
// query. A unit of work is one head of one document; its sums run over the keys in order, so they
// depend neither on the other documents nor on the number of threads. Everything is F32 inside.
#include "tensor/cpu/decode_attention.h"

#include <cmath>

#include "tensor/cpu/simd.h"

namespace lk::cpu {
namespace {

struct Sums {
  float largest, total;
};

// out (D) = sum over j of exp(score_j - largest) v_j, not yet divided by `total`; score (n) is
// scratch.
template <class T>
LK_SIMD Sums attend_row(float* out, float* score, const T* q, const T* k, std::int64_t k_ld,
                        const T* v, std::int64_t v_ld, std::int64_t n, std::int64_t D,
                        float scale) {
  float largest = -INFINITY;
  for (std::int64_t j = 0; j < n; ++j) {
    const T* key = k + j * k_ld;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t d = 0; d < D; ++d) sum += widen(q[d]) * widen(key[d]);
    score[j] = scale * sum;
    largest = score[j] > largest ? score[j] : largest;
  }
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t j = 0; j < n; ++j) {
    score[j] = fast_exp(score[j] - largest);
    total += score[j];
  }
  for (std::int64_t d = 0; d < D; ++d) out[d] = 0;
  for (std::int64_t j = 0; j < n; ++j) {
    const T* value = v + j * v_ld;
    const float p = score[j];
#pragma omp simd
    for (std::int64_t d = 0; d < D; ++d) out[d] += p * widen(value[d]);
  }
  return {largest, total};
}

template <class T>
LK_SIMD void store_scaled(T* y, const float* x, std::int64_t D, float factor) {
#pragma omp simd
  for (std::int64_t d = 0; d < D; ++d) y[d] = narrow<T>(factor * x[d]);
}

}  // namespace

template <class T>
void decode_attention(Matrix<T> o, Matrix<float> lse, Matrix<T> q, Matrix<T> k, Matrix<T> v,
                      const AttentionShape& s, const std::vector<Document>& docs) {
  const std::int64_t D = s.head_dim, H = s.n_heads, group = H / s.n_kv_heads;
  const std::int64_t n_units = std::ssize(docs) * H;
  std::int64_t most = 0, work = 0;
  for (const Document& doc : docs) {
    most = std::max(most, doc.keys());
    work += doc.queries() * doc.keys() * H * D;
  }
#pragma omp parallel if (work > kSerialElements)
  {
    std::vector<float> scratch(static_cast<std::size_t>(most + D));
#pragma omp for schedule(dynamic)
    for (std::int64_t unit = 0; unit < n_units; ++unit) {
      const Document& doc = docs[static_cast<std::size_t>(unit / H)];
      const std::int64_t h = unit % H, at = h * D, kv = h / group * D;
      float *score = scratch.data(), *out = score + most;
      for (std::int64_t i = 0; i < doc.queries(); ++i) {
        const std::int64_t t = doc.q0 + i, first = doc.first_key(i, s.window);
        const Sums sums =
            attend_row(out, score, q[t] + at, k[doc.k0 + first] + kv, k.ld, v[doc.k0 + first] + kv,
                       v.ld, doc.end_key(i) - first, D, s.scale);
        store_scaled(o[t] + at, out, D, 1.0f / sums.total);
        lse[h][t] = sums.largest + std::log(sums.total);
      }
    }
  }
}

template void decode_attention<float>(Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                                      Matrix<float>, const AttentionShape&,
                                      const std::vector<Document>&);
template void decode_attention<bf16>(Matrix<bf16>, Matrix<float>, Matrix<bf16>, Matrix<bf16>,
                                     Matrix<bf16>, const AttentionShape&,
                                     const std::vector<Document>&);

}  // namespace lk::cpu
