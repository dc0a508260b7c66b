// Causal attention with grouped key/value heads over documents laid end to end.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/decode_attention.h"
#include "cpu/fast/flash_attention.h"
#include "cpu/kernels.h"

namespace lk {

using namespace cpu;

namespace {

std::vector<Document> documents(const Segments& q_seg, const KeyRows& k_rows) {
  check(q_seg.count() == k_rows.count(), "attention: ", q_seg.count(), " documents of queries, ",
        k_rows.count(), " of keys");
  std::vector<Document> docs;
  for (std::size_t i = 0; i + 1 < q_seg.host.size(); ++i) {
    Document d{q_seg.host[i], q_seg.host[i + 1], k_rows.begins[i], k_rows.ends[i]};
    check(d.keys() >= d.queries(), "attention: document ", i, " has more queries than keys");
    docs.push_back(d);
  }
  return docs;
}

template <class T>
accumulate_t<T> dot(const T* a, const T* b, std::int64_t n) {
  accumulate_t<T> total = 0;
  for (std::int64_t i = 0; i < n; ++i) total += load(a[i]) * load(b[i]);
  return total;
}

// ---- plain twins: the definitions -------------------------------------------------------------

template <class T>
void attention_forward_plain(Matrix<T> o, Matrix<accumulate_t<T>> lse, Matrix<T> q, Matrix<T> k,
                             Matrix<T> v, const AttentionShape& s,
                             const std::vector<Document>& docs) {
  using A = accumulate_t<T>;
  const std::int64_t D = s.head_dim, group = s.n_heads / s.n_kv_heads;
  std::vector<A> score, out(static_cast<std::size_t>(D));
  for (const Document& doc : docs)
    for (std::int64_t h = 0; h < s.n_heads; ++h)
      for (std::int64_t t = doc.q0; t < doc.q1; ++t) {
        const std::int64_t first = doc.first_key(t - doc.q0, s.window),
                           end = doc.end_key(t - doc.q0);
        const std::int64_t at = h * D, kv = h / group * D;
        score.clear();
        for (std::int64_t j = first; j < end; ++j)
          score.push_back(static_cast<A>(s.scale) * dot(q[t] + at, k[doc.k0 + j] + kv, D));
        A largest = *std::max_element(score.begin(), score.end()), total = 0;
        for (A x : score) total += std::exp(x - largest);
        lse[h][t] = largest + std::log(total);
        std::fill(out.begin(), out.end(), A(0));
        for (std::int64_t j = first; j < end; ++j) {
          A p = std::exp(score[static_cast<std::size_t>(j - first)] - largest) / total;
          for (std::int64_t d = 0; d < D; ++d)
            out[static_cast<std::size_t>(d)] += p * load(v[doc.k0 + j][kv + d]);
        }
        for (std::int64_t d = 0; d < D; ++d)
          o[t][at + d] = rounded<T>(out[static_cast<std::size_t>(d)]);
      }
}

// With p = softmax(s), dp = dout v^T, delta = sum(dout * o): ds = p (dp - delta) * scale;
// dq = ds k, dk = ds^T q, dv = p^T dout, the last two summed over the queries and heads of a group.
template <class T>
void attention_backward_plain(Matrix<T> dq, Matrix<T> dk, Matrix<T> dv, Matrix<T> dout, Matrix<T> q,
                              Matrix<T> k, Matrix<T> v, Matrix<T> o, Matrix<accumulate_t<T>> lse,
                              const AttentionShape& s, const std::vector<Document>& docs) {
  using A = accumulate_t<T>;
  const std::int64_t D = s.head_dim, group = s.n_heads / s.n_kv_heads;
  std::vector<A> dq_sum(static_cast<std::size_t>(D)), dk_sum, dv_sum;
  for (const Document& doc : docs)
    for (std::int64_t g = 0; g < s.n_kv_heads; ++g) {
      const std::int64_t kv = g * D;
      dk_sum.assign(static_cast<std::size_t>((doc.k1 - doc.k0) * D), A(0));
      dv_sum = dk_sum;
      for (std::int64_t h = g * group; h < (g + 1) * group; ++h)
        for (std::int64_t t = doc.q0; t < doc.q1; ++t) {
          const std::int64_t at = h * D;
          const A delta = dot(dout[t] + at, o[t] + at, D);
          std::fill(dq_sum.begin(), dq_sum.end(), A(0));
          for (std::int64_t j = doc.first_key(t - doc.q0, s.window); j < doc.end_key(t - doc.q0);
               ++j) {
            const T *kj = k[doc.k0 + j] + kv, *vj = v[doc.k0 + j] + kv;
            A p = std::exp(static_cast<A>(s.scale) * dot(q[t] + at, kj, D) - lse[h][t]);
            A ds = p * (dot(dout[t] + at, vj, D) - delta) * static_cast<A>(s.scale);
            A* dkj = &dk_sum[static_cast<std::size_t>(j * D)];
            A* dvj = &dv_sum[static_cast<std::size_t>(j * D)];
            for (std::int64_t d = 0; d < D; ++d) {
              dq_sum[static_cast<std::size_t>(d)] += ds * load(kj[d]);
              dkj[d] += ds * load(q[t][at + d]);
              dvj[d] += p * load(dout[t][at + d]);
            }
          }
          for (std::int64_t d = 0; d < D; ++d)
            dq[t][at + d] = rounded<T>(dq_sum[static_cast<std::size_t>(d)]);
        }
      for (std::int64_t j = 0; j < doc.k1 - doc.k0; ++j)
        for (std::int64_t d = 0; d < D; ++d) {
          dk[doc.k0 + j][kv + d] = rounded<T>(dk_sum[static_cast<std::size_t>(j * D + d)]);
          dv[doc.k0 + j][kv + d] = rounded<T>(dv_sum[static_cast<std::size_t>(j * D + d)]);
        }
    }
}

}  // namespace

void CpuBackend::attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q,
                                   const Tensor& k, const Tensor& v, const AttentionShape& shape,
                                   const Segments& q_seg, const KeyRows& k_rows) {
  std::vector<Document> docs = documents(q_seg, k_rows);
  dispatch_float(q.dtype(), [&]<class T>() {
    if constexpr (has_fast_path<T>)
      if (fast()) {
        // Which path a document takes depends on its own queries alone.
        auto few = [](const Document& d) {
          return d.queries() <= kDecodeQueries && d.keys() > d.queries();
        };
        const auto rest = std::stable_partition(docs.begin(), docs.end(), few);
        const std::vector<Document> decoding(docs.begin(), rest);
        docs.erase(docs.begin(), rest);
        decode_attention<T>(matrix<T>(o), matrix<float>(lse), matrix<T>(q), matrix<T>(k),
                            matrix<T>(v), shape, decoding);
        if (!docs.empty())
          flash_attention_forward(*this, matrix<T>(o), matrix<float>(lse), matrix<T>(q),
                                  matrix<T>(k), matrix<T>(v), shape, docs);
        return;
      }
    attention_forward_plain(matrix<T>(o), matrix<accumulate_t<T>>(lse), matrix<T>(q), matrix<T>(k),
                            matrix<T>(v), shape, docs);
  });
}

void CpuBackend::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                    const Tensor& dout, const Tensor& q, const Tensor& k,
                                    const Tensor& v, const Tensor& o, const Tensor& lse,
                                    const AttentionShape& shape, const Segments& seg,
                                    const Rotation* rotation) {
  std::vector<Document> docs = documents(seg, seg);
  dispatch_float(q.dtype(), [&]<class T>() {
    if constexpr (has_fast_path<T>)
      if (fast())
        return flash_attention_backward(*this, matrix<T>(dq), matrix<T>(dk), matrix<T>(dv),
                                        matrix<T>(dout), matrix<T>(q), matrix<T>(k), matrix<T>(v),
                                        matrix<T>(o), matrix<float>(lse), shape, docs);
    attention_backward_plain(matrix<T>(dq), matrix<T>(dk), matrix<T>(dv), matrix<T>(dout),
                             matrix<T>(q), matrix<T>(k), matrix<T>(v), matrix<T>(o),
                             matrix<accumulate_t<T>>(lse), shape, docs);
  });
  if (!rotation) return;
  for (const Tensor& d : {dq, dk})
    rope(d, GradMode::Write, d, rotation->table, rotation->positions, shape.head_dim, true);
}

}  // namespace lk
