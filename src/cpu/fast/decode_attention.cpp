// Attention of a few new queries: keys and values are read in place in the cache, once for all
// query heads that share them. A unit of work is kPieceKeys keys of one key/value head for one
// query, with its own largest score; a query's pieces are then added in order. Pieces are counted
// from the query's first key, so no sum depends on the other documents or on the number of threads.
// All arithmetic is F32.
#include "cpu/fast/decode_attention.h"

#include <cmath>

#include "cpu/fast/simd.h"
#include "cpu/thread_scratch.h"

namespace lk::cpu {
namespace {

constexpr std::int64_t kPieceKeys = 64;
constexpr std::int64_t kLanes = 8;  // elements of a head that are summed in parallel
constexpr int kMostHeads = 4;       // heads that share a pass over a piece: sums fit in registers

struct Piece {
  std::int64_t doc, query, kv_head, begin, end;  // keys of the document
};

// score (H, kPieceKeys) = scale * q (H, D) k^T for `n` keys.
template <int H, class T>
LK_INLINE void score_keys(float* score, const float* q, const T* k, std::int64_t k_ld, const T* v,
                          std::int64_t v_ld, std::int64_t n, std::int64_t D, float scale) {
  constexpr std::int64_t kLine = 64 / sizeof(T);
  for (std::int64_t j = 0; j < n; ++j, k += k_ld) {
    for (std::int64_t i = 0; i < D; i += kLine) {
      __builtin_prefetch(k + 4 * k_ld + i);
      __builtin_prefetch(v + j * v_ld + i);
    }
    Eight sum[H] = {};
    std::int64_t d = 0;
    for (; d + kLanes <= D; d += kLanes) {
      const Eight key = load_eight(k + d);
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) sum[h] += load_eight(q + h * D + d) * key;
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
      float rest = 0;
      for (std::int64_t i = d; i < D; ++i) rest += q[h * D + i] * widen(k[i]);
      score[h * kPieceKeys + j] = scale * (add_up(sum[h]) + rest);
    }
  }
}

// out (H, D), rows out_row apart, = p (H, kPieceKeys) v for `n` keys.
template <int H, class T>
LK_INLINE void sum_values(float* out, std::int64_t out_row, const float* p, const T* v,
                          std::int64_t v_ld, std::int64_t n, std::int64_t D) {
  std::int64_t d = 0;
  for (; d + 2 * kLanes <= D; d += 2 * kLanes) {
    Eight low[H] = {}, high[H] = {};
    for (std::int64_t j = 0; j < n; ++j) {
      const Eight a = load_eight(v + j * v_ld + d), b = load_eight(v + j * v_ld + d + kLanes);
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) {
        low[h] += p[h * kPieceKeys + j] * a;
        high[h] += p[h * kPieceKeys + j] * b;
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < H; ++h) {
      __builtin_memcpy(out + h * out_row + d, &low[h], sizeof low[h]);
      __builtin_memcpy(out + h * out_row + d + kLanes, &high[h], sizeof high[h]);
    }
  }
  for (; d < D; ++d)
    for (int h = 0; h < H; ++h) {
      float sum = 0;
      for (std::int64_t j = 0; j < n; ++j) sum += p[h * kPieceKeys + j] * widen(v[j * v_ld + d]);
      out[h * out_row + d] = sum;
    }
}

// For each of H heads: out[h] = (largest score, total, D sums of exp(score - largest) v). `score`
// is scratch of (H, kPieceKeys).
template <int H, class T>
LK_SIMD void attend_piece(float* out, float* score, const float* q, const T* k, std::int64_t k_ld,
                          const T* v, std::int64_t v_ld, std::int64_t n, std::int64_t D,
                          float scale) {
  score_keys<H>(score, q, k, k_ld, v, v_ld, n, D, scale);
  for (int h = 0; h < H; ++h) {
    float* s = score + h * kPieceKeys;
    float largest = -INFINITY, total = 0;
    for (std::int64_t j = 0; j < n; ++j) largest = s[j] > largest ? s[j] : largest;
#pragma omp simd reduction(+ : total)
    for (std::int64_t j = 0; j < n; ++j) {
      s[j] = fast_exp(s[j] - largest);
      total += s[j];
    }
    out[h * (D + 2)] = largest, out[h * (D + 2) + 1] = total;
  }
  sum_values<H>(out + 2, D + 2, score, v, v_ld, n, D);
}

template <class T>
using PieceFunction = void (*)(float*, float*, const float*, const T*, std::int64_t, const T*,
                               std::int64_t, std::int64_t, std::int64_t, float);
template <class T>
constexpr PieceFunction<T> kFunctions[kMostHeads] = {attend_piece<1, T>, attend_piece<2, T>,
                                                     attend_piece<3, T>, attend_piece<4, T>};

template <class T>
LK_SIMD void widen_row(float* y, const T* x, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] = widen(x[i]);
}

// y (D) = the sum of `n` pieces, `step` numbers apart, over their total. Returns the log-sum-exp of
// the scores. `sum` (D) is scratch.
template <class T>
LK_SIMD float join_pieces(T* y, float* sum, const float* piece, std::int64_t n, std::int64_t step,
                          std::int64_t D) {
  float largest = -INFINITY, total = 0;
  for (std::int64_t i = 0; i < n; ++i)
    largest = piece[i * step] > largest ? piece[i * step] : largest;
  for (std::int64_t d = 0; d < D; ++d) sum[d] = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float* p = piece + i * step;
    const float factor = fast_exp(p[0] - largest);
    total += factor * p[1];
#pragma omp simd
    for (std::int64_t d = 0; d < D; ++d) sum[d] += factor * p[2 + d];
  }
  const float inverse = 1.0f / total;
#pragma omp simd
  for (std::int64_t d = 0; d < D; ++d) y[d] = narrow<T>(inverse * sum[d]);
  return largest + std::log(total);
}

}  // namespace

template <class T>
void decode_attention(Matrix<T> o, Matrix<float> lse, Matrix<T> q, Matrix<T> k, Matrix<T> v,
                      const AttentionShape& s, const std::vector<Document>& docs) {
  const std::int64_t D = s.head_dim, H = s.n_heads, G = s.n_kv_heads, group = H / G;
  const std::int64_t head = D + 2, step = group * head;  // floats of a piece: of one head, of all
  std::vector<Piece> pieces;
  std::vector<std::int64_t> rows;  // index of the first piece of each (query, key/value head)
  std::int64_t work = 0;
  for (std::int64_t i = 0; i < std::ssize(docs); ++i) {
    const Document& doc = docs[static_cast<std::size_t>(i)];
    work += doc.queries() * doc.keys() * H * D;
    for (std::int64_t t = 0; t < doc.queries(); ++t)
      for (std::int64_t g = 0; g < G; ++g) {
        rows.push_back(std::ssize(pieces));
        const std::int64_t end = doc.end_key(t);
        for (std::int64_t j = doc.first_key(t, s.window); j < end; j += kPieceKeys)
          pieces.push_back({i, t, g, j, std::min(end, j + kPieceKeys)});
      }
  }
  const std::size_t n_rows = rows.size();
  rows.push_back(std::ssize(pieces));
  std::vector<float> partial(pieces.size() * static_cast<std::size_t>(step));

  ThreadScratch scratch(kMostHeads * (kPieceKeys + D));
#pragma omp parallel if (work > kSerialElements)
  {
    float *score = scratch.mine(), *wide = score + kMostHeads * kPieceKeys;
#pragma omp for schedule(dynamic)
    for (std::size_t n = 0; n < pieces.size(); ++n) {
      const Piece& p = pieces[n];
      const Document& doc = docs[static_cast<std::size_t>(p.doc)];
      const T *key = k[doc.k0 + p.begin] + p.kv_head * D,
              *value = v[doc.k0 + p.begin] + p.kv_head * D;
      for (std::int64_t h = 0; h < group; h += kMostHeads) {
        const std::int64_t heads = std::min<std::int64_t>(kMostHeads, group - h);
        widen_row(wide, q[doc.q0 + p.query] + (p.kv_head * group + h) * D, heads * D);
        kFunctions<T>[heads - 1](partial.data() + static_cast<std::int64_t>(n) * step + h * head,
                                 score, wide, key, k.ld, value, v.ld, p.end - p.begin, D, s.scale);
      }
    }
#pragma omp for schedule(static)
    for (std::size_t r = 0; r < n_rows; ++r) {
      const Piece& p = pieces[static_cast<std::size_t>(rows[r])];
      const std::int64_t t = docs[static_cast<std::size_t>(p.doc)].q0 + p.query;
      for (std::int64_t i = 0; i < group; ++i) {
        const std::int64_t h = p.kv_head * group + i;
        lse[h][t] = join_pieces(o[t] + h * D, wide, partial.data() + rows[r] * step + i * head,
                                rows[r + 1] - rows[r], step, D);
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
