#include "tensor/cpu/cached_attention.h"

#include <cmath>

#include "tensor/cpu/simd.h"

namespace lk::cpu {
namespace {

// s[j] = scale * q . k[j], four keys at a time.
template <class T>
LK_SIMD void score_keys(float* s, const T* q, const T* k, std::int64_t ld, std::int64_t n,
                        std::int64_t D, float scale) {
  std::int64_t j = 0;
  for (; j + 4 <= n; j += 4, k += 4 * ld) {
    float a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
    for (std::int64_t i = 0; i < D; ++i) {
      const float x = widen(q[i]);
      a += x * widen(k[i]);
      b += x * widen(k[ld + i]);
      c += x * widen(k[2 * ld + i]);
      d += x * widen(k[3 * ld + i]);
    }
    s[j] = scale * a, s[j + 1] = scale * b, s[j + 2] = scale * c, s[j + 3] = scale * d;
  }
  for (; j < n; ++j, k += ld) {
    float a = 0;
#pragma omp simd reduction(+ : a)
    for (std::int64_t i = 0; i < D; ++i) a += widen(q[i]) * widen(k[i]);
    s[j] = scale * a;
  }
}

// s becomes exp(s - largest); returns the sum.
LK_SIMD float exponentials(float* s, std::int64_t n, float& largest) {
  float top = s[0];
#pragma omp simd reduction(max : top)
  for (std::int64_t j = 0; j < n; ++j) top = s[j] > top ? s[j] : top;
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t j = 0; j < n; ++j) {
    s[j] = fast_exp(s[j] - top);
    total += s[j];
  }
  largest = top;
  return total;
}

// out = sum of s[j] v[j], four keys at a time; then o = factor * out.
template <class T>
LK_SIMD void weigh_values(T* o, float* out, const float* s, const T* v, std::int64_t ld,
                          std::int64_t n, std::int64_t D, float factor) {
  for (std::int64_t i = 0; i < D; ++i) out[i] = 0;
  std::int64_t j = 0;
  for (; j + 4 <= n; j += 4, v += 4 * ld) {
    const float a = s[j], b = s[j + 1], c = s[j + 2], d = s[j + 3];
#pragma omp simd
    for (std::int64_t i = 0; i < D; ++i)
      out[i] += (a * widen(v[i]) + b * widen(v[ld + i])) +
                (c * widen(v[2 * ld + i]) + d * widen(v[3 * ld + i]));
  }
  for (; j < n; ++j, v += ld)
#pragma omp simd
    for (std::int64_t i = 0; i < D; ++i) out[i] += s[j] * widen(v[i]);
#pragma omp simd
  for (std::int64_t i = 0; i < D; ++i) o[i] = narrow<T>(factor * out[i]);
}

}  // namespace

template <class T>
void cached_attention_forward(Matrix<T> o, Matrix<float> lse, Matrix<T> q, Matrix<T> k, Matrix<T> v,
                              const AttentionShape& shape, const std::vector<Document>& docs) {
  struct Unit {
    const Document* doc;
    std::int64_t query, head;
  };
  std::vector<Unit> units;
  std::int64_t longest = 0, work = 0;
  for (const Document& doc : docs) {
    for (std::int64_t i = 0; i < doc.queries(); ++i)
      for (std::int64_t h = 0; h < shape.n_heads; ++h) units.push_back({&doc, i, h});
    longest = std::max(longest, doc.keys());
    work += doc.queries() * doc.keys() * shape.n_heads * shape.head_dim;
  }
  const std::int64_t D = shape.head_dim, group = shape.n_heads / shape.n_kv_heads;
  const std::size_t n_units = units.size();
#pragma omp parallel if (work > kSerialElements)
  {
    std::vector<float> scratch(static_cast<std::size_t>(longest + D));
    float *s = scratch.data(), *out = s + longest;
#pragma omp for schedule(static)
    for (std::size_t n = 0; n < n_units; ++n) {
      const auto [doc, i, h] = units[n];
      const std::int64_t first = doc->first_key(i, shape.window), keys = doc->end_key(i) - first;
      const std::int64_t row = doc->k0 + first, column = h / group * D, t = doc->q0 + i;
      score_keys(s, q[t] + h * D, k[row] + column, k.ld, keys, D, shape.scale);
      float largest;
      const float total = exponentials(s, keys, largest);
      weigh_values(o[t] + h * D, out, s, v[row] + column, v.ld, keys, D, 1.0f / total);
      lse[h][t] = largest + std::log(total);
    }
  }
}

template void cached_attention_forward<float>(Matrix<float>, Matrix<float>, Matrix<float>,
                                              Matrix<float>, Matrix<float>, const AttentionShape&,
                                              const std::vector<Document>&);
template void cached_attention_forward<bf16>(Matrix<bf16>, Matrix<float>, Matrix<bf16>,
                                             Matrix<bf16>, Matrix<bf16>, const AttentionShape&,
                                             const std::vector<Document>&);

}  // namespace lk::cpu
