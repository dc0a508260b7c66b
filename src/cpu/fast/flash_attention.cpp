// Attention in blocks of queries x keys, so that each thread holds one block of scores at a time
// (Dao 2023, "FlashAttention-2"). All five products use the register tiles of the matrix product.
//
// A unit of work is one block of queries (forward, dq) or one block of keys (dk, dv) of one head,
// and the backward pass visits each block of scores twice, once for each side. It visits a block once
// where there is enough work for all threads: by key/value heads of documents, or in turns (Note
// [Turns]). All ways add the same numbers in the same order, so nothing depends on the number of
// threads: dk and dv are sums over segments of queries, the last first, and in a segment over the
// group's heads and then the queries.
//
// Keys and values are first laid out in F32 as the tiles want them, heads apart (see Layout); the
// scale is folded into the queries.
#include "cpu/fast/flash_attention.h"

#include <cmath>
#include <cstdint>

#include "cpu/fast/attention_units.h"
#include "cpu/fast/flash_attention_bf16.h"
#include "cpu/fast/gemm_tile.h"

namespace lk::cpu {
namespace {

// y [D padded to `width`] = factor * x, with zeros behind D.
template <class T>
LK_SIMD void load_row(float* y, const T* x, std::int64_t D, std::int64_t width, float factor) {
#pragma omp simd
  for (std::int64_t d = 0; d < D; ++d) y[d] = factor * widen(x[d]);
  for (std::int64_t d = D; d < width; ++d) y[d] = 0;
}

// Writes -inf (or 0) outside columns [lo, hi).
LK_INLINE void mask_row(float* s, std::int64_t n, std::int64_t lo, std::int64_t hi, float outside) {
  if (lo <= 0 && hi >= n) return;
  const auto first = static_cast<std::int32_t>(lo), end = static_cast<std::int32_t>(hi);
  const auto count = static_cast<std::int32_t>(n);
#pragma omp simd
  for (std::int32_t j = 0; j < count; ++j) s[j] = j >= first && j < end ? s[j] : outside;
}

// Turns one row of a block of scores, of which only columns [lo, hi) exist, into exp(s - max), zero
// elsewhere, and rescales the row's running maximum, sum and output to the new maximum.
LK_SIMD void online_softmax_row(float* s, std::int64_t n, std::int64_t lo, std::int64_t hi,
                                float& max, float& sum, float* out, std::int64_t width) {
  mask_row(s, n, lo, hi, -INFINITY);
  float largest = max;
#pragma omp simd reduction(max : largest)
  for (std::int64_t j = 0; j < n; ++j) largest = s[j] > largest ? s[j] : largest;
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t j = 0; j < n; ++j) {
    s[j] = fast_exp(s[j] - largest);
    total += s[j];
  }
  const float correction = fast_exp(max - largest);
  sum = sum * correction + total;
  max = largest;
  if (correction != 1.0f) {
#pragma omp simd
    for (std::int64_t d = 0; d < width; ++d) out[d] *= correction;
  }
}

// For one row of scores s and of dp: s becomes p = exp(s - lse), dp becomes ds = p (dp - delta).
LK_SIMD void softmax_backward_row(float* s, float* dp, std::int64_t n, std::int64_t lo,
                                  std::int64_t hi, float lse, float delta) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) s[j] = fast_exp(s[j] - lse);
  mask_row(s, n, lo, hi, 0.0f);
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) dp[j] = s[j] * (dp[j] - delta);
  mask_row(dp, n, lo, hi, 0.0f);
}

// Keys (or values) of all heads and documents in F32. For each head: `rows` [T][width], and
// `panels`, which hold the transpose, [D][wide] for each panel of `wide` keys. Documents start at a
// new panel.
class Layout {
 public:
  Layout(Backend& backend, const GemmTile& tile, const AttentionShape& shape,
         const std::vector<Document>& docs, bool rows, bool panels)
      : tile_(tile), D_(shape.head_dim), heads_(shape.n_kv_heads) {
    const std::int64_t wide = tile.wide();
    width_ = (D_ + wide - 1) / wide * wide;
    for (const Document& doc : docs) {
      start_.push_back(keys_);
      keys_ += (doc.keys() + wide - 1) / wide * wide;
    }
    if (rows) rows_ = backend.empty(Tag::Workspace, DType::F32, {heads_, keys_ * width_});
    if (panels) panels_ = backend.empty(Tag::Workspace, DType::F32, {heads_, keys_ * D_});
  }

  // The row of key j of document i and head g: D numbers, then zeros up to width().
  float* row(std::size_t i, std::int64_t g, std::int64_t j) const {
    return rows_.data<float>() + (g * keys_ + start_[i] + j) * width_;
  }
  // The panel that begins with key j, a multiple of the tile's width.
  float* panel(std::size_t i, std::int64_t g, std::int64_t j) const {
    return panels_.data<float>() + (g * keys_ + start_[i] + j) * D_;
  }
  std::int64_t width() const { return width_; }

  // Fills both forms from x (T, G*D).
  template <class T>
  void fill(Matrix<T> x, const std::vector<Document>& docs) const {
    struct Unit {
      std::size_t doc;
      std::int64_t g, begin, end;
    };
    std::vector<Unit> units;
    for (std::size_t i = 0; i < docs.size(); ++i)
      for (std::int64_t g = 0; g < heads_; ++g)
        for (std::int64_t j = 0; j < docs[i].keys(); j += kKeys)
          units.push_back({i, g, j, std::min(docs[i].keys(), j + kKeys)});
    parallel_for(static_cast<std::int64_t>(units.size()), x.rows * x.cols, [&](std::int64_t n) {
      const Unit& u = units[static_cast<std::size_t>(n)];
      const std::int64_t wide = tile_.wide();
      const T* from = x[docs[u.doc].k0] + u.g * D_;
      if (rows_)
        for (std::int64_t j = u.begin; j < u.end; ++j)
          load_row(row(u.doc, u.g, j), from + j * x.ld, D_, width_, 1.0f);
      if (panels_)
        for (std::int64_t j = u.begin; j < u.end; j += wide)
          pack(from + j * x.ld, x.ld, static_cast<int>(std::min(wide, u.end - j)),
               panel(u.doc, u.g, j));
    });
  }

 private:
  void pack(const float* x, std::int64_t ld, int n, float* to) const {
    tile_.pack_transposed_f32(x, ld, D_, n, tile_.wide(), to);
  }
  void pack(const bf16* x, std::int64_t ld, int n, float* to) const {
    tile_.pack_transposed_bf16(reinterpret_cast<const std::uint16_t*>(x), ld, D_, n, tile_.wide(),
                               to);
  }

  const GemmTile& tile_;
  std::int64_t D_, heads_, width_ = 0, keys_ = 0;
  std::vector<std::int64_t> start_;
  Tensor rows_, panels_;
};

// out (rows, kKeys) = left (rows,D) times the transpose of keys [j, j + n).
void scores(const GemmTile& tile, const Layout& layout, std::size_t doc, std::int64_t g,
            std::int64_t j, std::int64_t n, const float* left, std::int64_t rows, std::int64_t D,
            float* out) {
  const int wide = tile.wide();
  for (std::int64_t c = 0; c < n; c += wide)
    tile.multiply(rows, D, left, layout.width(), 1, layout.panel(doc, g, j + c), wide, wide,
                  out + c, kKeys, false);
}

// out (rows,width) += left (rows,K) times right (K,width); element (i, k) of left is left[i * row +
// k * col].
void accumulate(const GemmTile& tile, const float* left, std::int64_t row, std::int64_t col,
                std::int64_t rows, std::int64_t K, const float* right, std::int64_t width,
                float* out) {
  const int wide = tile.wide();
  for (std::int64_t c = 0; c < width; c += wide)
    tile.multiply(rows, K, left, row, col, right + c, width, wide, out + c, width, true);
}

}  // namespace

template <class T>
void flash_attention_forward(Backend& backend, Matrix<T> o, Matrix<float> lse, Matrix<T> q,
                             Matrix<T> k, Matrix<T> v, const AttentionShape& s,
                             const std::vector<Document>& docs) {
  if constexpr (std::is_same_v<T, bf16>)
    if (const Bf16Tile* native = best_bf16_tile())
      return bf16_attention_forward(*native, backend, o, lse, q, k, v, s, docs);
  const GemmTile& tile = best_gemm_tile();
  Layout keys(backend, tile, s, docs, false, true), vals(backend, tile, s, docs, true, false);
  keys.fill(k, docs);
  vals.fill(v, docs);
  const std::int64_t D = s.head_dim, W = keys.width(), group = s.n_heads / s.n_kv_heads;
  for_units(query_units(s, docs), kQueries * (2 * W + 2) + kGroup * kKeys,
            [&](const AttentionUnit& u, float* scratch) {
              const Document& doc = docs[u.doc];
              const std::int64_t g = u.head / group, at = u.head * D, m = u.size();
              float *query = scratch, *out = query + kQueries * W, *score = out + kQueries * W;
              float *max = score + kGroup * kKeys, *sum = max + kQueries;
              std::fill_n(out, m * W, 0.0f);
              std::fill_n(max, m, kLowest);
              std::fill_n(sum, m, 0.0f);
              for (std::int64_t i = 0; i < m; ++i)
                load_row(query + i * W, q[doc.q0 + u.begin + i] + at, D, W, s.scale);
              const std::int64_t first = doc.first_key(u.begin, s.window) / kKeys * kKeys;
              for (std::int64_t j = first, end = doc.end_key(u.end - 1); j < end; j += kKeys)
                for (std::int64_t r = 0; r < m; r += kGroup) {
                  const std::int64_t rows = std::min(kGroup, m - r);
                  const std::int64_t n = std::min(kKeys, doc.end_key(u.begin + r + rows - 1) - j);
                  if (n <= 0) continue;
                  scores(tile, keys, u.doc, g, j, n, query + r * W, rows, D, score);
                  for (std::int64_t i = r; i < r + rows; ++i)
                    online_softmax_row(score + (i - r) * kKeys, round_up(n, tile.wide()),
                                       doc.first_key(u.begin + i, s.window) - j,
                                       doc.end_key(u.begin + i) - j, max[i], sum[i], out + i * W,
                                       W);
                  accumulate(tile, score, kKeys, 1, rows, n, vals.row(u.doc, g, j), W, out + r * W);
                }
              for (std::int64_t i = 0; i < m; ++i) {
                store_row(o[doc.q0 + u.begin + i] + at, out + i * W, D, 1.0f / sum[i]);
                lse[u.head][doc.q0 + u.begin + i] = max[i] + std::log(sum[i]);
              }
            });
}

template <class T>
void flash_attention_backward(Backend& backend, Matrix<T> dq, Matrix<T> dk, Matrix<T> dv,
                              Matrix<T> dout, Matrix<T> q, Matrix<T> k, Matrix<T> v, Matrix<T> o,
                              Matrix<float> lse, const AttentionShape& s,
                              const std::vector<Document>& docs) {
  if constexpr (std::is_same_v<T, bf16>)
    if (const Bf16Tile* native = best_bf16_tile())
      return bf16_attention_backward(*native, backend, dq, dk, dv, dout, q, k, v, o, lse, s, docs);
  const GemmTile& tile = best_gemm_tile();
  Layout keys(backend, tile, s, docs, true, true), vals(backend, tile, s, docs, false, true);
  keys.fill(k, docs);
  vals.fill(v, docs);
  const std::int64_t D = s.head_dim, W = keys.width(), group = s.n_heads / s.n_kv_heads;
  Tensor delta_store = backend.empty(Tag::Workspace, DType::F32, {s.n_heads, q.rows});
  Matrix<float> delta = matrix<float>(delta_store);
  const KeySums key_sums(backend, dk, dv);

  // Loads the queries (times scale) and output gradients of `rows` rows of a head, from row `begin`
  // on.
  auto load_block = [&](const Document& doc, std::int64_t head, std::int64_t begin,
                        std::int64_t rows, float* query, float* upper) {
    for (std::int64_t i = 0; i < rows; ++i) {
      load_row(query + i * W, q[doc.q0 + begin + i] + head * D, D, W, s.scale);
      load_row(upper + i * W, dout[doc.q0 + begin + i] + head * D, D, W, 1.0f);
    }
  };
  // Computes p and ds of `rows` rows of a head and keys [j, j + n); rows of both are kKeys long.
  auto score_block = [&](std::size_t d, std::int64_t head, std::int64_t begin, std::int64_t rows,
                         std::int64_t j, std::int64_t n, const float* query, const float* upper,
                         float* p, float* ds) {
    scores(tile, keys, d, head / group, j, n, query, rows, D, p);
    scores(tile, vals, d, head / group, j, n, upper, rows, D, ds);
    for (std::int64_t i = 0; i < rows; ++i)
      softmax_backward_row(p + i * kKeys, ds + i * kKeys, round_up(n, tile.wide()),
                           docs[d].first_key(begin + i, s.window) - j,
                           docs[d].end_key(begin + i) - j, lse[head][docs[d].q0 + begin + i],
                           delta[head][docs[d].q0 + begin + i]);
  };

  parallel_for(q.rows, q.rows * q.cols, [&](std::int64_t t) {
    for (std::int64_t h = 0; h < s.n_heads; ++h)
      delta[h][t] = dot_row(dout[t] + h * D, o[t] + h * D, D);
  });

  // dk = ds^T (scale q), dv = p^T dout of a block of keys and the queries [begin, end), which become the
  // sums (2, kKeys, W). dq_sums (group, dq_rows, W) receives ds k for the queries from dq_begin on, or is null.
  const std::int64_t segment_floats = 2 * kQueries * W + 2 * kQueries * kKeys;
  auto key_segment = [&](const AttentionUnit& u, std::int64_t begin, std::int64_t end,
                         float* scratch, float* sums, float* dq_sums, std::int64_t dq_begin,
                         std::int64_t dq_rows) {
    const Document& doc = docs[u.doc];
    const std::int64_t shift = doc.keys() - doc.queries(), wide = tile.wide();
    float *query = scratch, *upper = query + kQueries * W;
    float *p = upper + kQueries * W, *ds = p + kQueries * kKeys;
    float *dk_sum = sums, *dv_sum = dk_sum + kKeys * W;
    std::fill_n(sums, 2 * kKeys * W, 0.0f);
    for (std::int64_t h = u.head * group; h < (u.head + 1) * group; ++h)
      for (std::int64_t i = begin; i < end; i += kQueries) {
        const std::int64_t m = std::min(kQueries, end - i);
        if (doc.end_key(i + m - 1) <= u.begin || doc.first_key(i, s.window) >= u.end) continue;
        load_block(doc, h, i, m, query, upper);
        for (std::int64_t r = 0; r < m; r += kGroup) {
          const std::int64_t rows = std::min(kGroup, m - r);
          const std::int64_t n = std::min(u.size(), doc.end_key(i + r + rows - 1) - u.begin);
          if (n <= 0) continue;
          score_block(u.doc, h, i + r, rows, u.begin, n, query + r * W, upper + r * W,
                      p + r * kKeys, ds + r * kKeys);
          if (dq_sums)
            accumulate(tile, ds + r * kKeys, kKeys, 1, rows, n, keys.row(u.doc, u.head, u.begin), W,
                       dq_sums + ((h - u.head * group) * dq_rows + i + r - dq_begin) * W);
        }
        // A panel of keys meets the queries from the first one that sees its first key.
        for (std::int64_t c = 0; c < u.size(); c += wide) {
          const std::int64_t r = std::max<std::int64_t>(0, u.begin + c - shift - i);
          const std::int64_t n = std::min(wide, u.size() - c);
          if (r >= m) break;
          accumulate(tile, p + r * kKeys + c, 1, kKeys, n, m - r, upper + r * W, W, dv_sum + c * W);
          accumulate(tile, ds + r * kKeys + c, 1, kKeys, n, m - r, query + r * W, W,
                     dk_sum + c * W);
        }
      }
  };
  // The same over all segments; dq_sums (group, queries, W).
  const std::int64_t key_floats = segment_floats + 4 * kKeys * W;
  auto key_block = [&](const AttentionUnit& u, float* scratch, float* dq_sums) {
    const Document& doc = docs[u.doc];
    float *sums = scratch + segment_floats, *total = sums + 2 * kKeys * W;
    std::fill_n(total, 2 * kKeys * W, 0.0f);
    bool first = true;
    for_segments(doc, [&](std::int64_t begin, std::int64_t end) {
      if (doc.end_key(end - 1) <= u.begin || doc.first_key(begin, s.window) >= u.end) return;
      key_segment(u, begin, end, scratch, sums, dq_sums, 0, doc.queries());
      add_row(total, sums, 2 * kKeys * W, !first);
      first = false;
    });
    for (std::int64_t j = 0; j < u.size(); ++j) {
      store_row(dk[doc.k0 + u.begin + j] + u.head * D, total + j * W, D, 1.0f);
      store_row(dv[doc.k0 + u.begin + j] + u.head * D, total + (kKeys + j) * W, D, 1.0f);
    }
  };

  if (std::int64_t own = 0; one_thread_a_head(s, docs, W, own)) {
    for_units(head_units(s, docs), key_floats + own, [&](const AttentionUnit& u, float* scratch) {
      const Document& doc = docs[u.doc];
      float* dq_sums = scratch + key_floats;
      std::fill_n(dq_sums, group * doc.queries() * W, 0.0f);
      for (std::int64_t j = 0; j < doc.keys(); j += kKeys)
        key_block({u.doc, u.head, j, std::min(doc.keys(), j + kKeys)}, scratch, dq_sums);
      for (std::int64_t h = 0; h < group; ++h)
        for (std::int64_t i = 0; i < doc.queries(); ++i)
          store_row(dq[doc.q0 + i] + (u.head * group + h) * D,
                    dq_sums + (h * doc.queries() + i) * W, D, s.scale);
    });
    return;
  }

  if (const std::vector<AttentionUnit> units = units_in_turns(s, docs); !units.empty()) {
    const std::int64_t sum_floats = 2 * kKeys * W;
    for_segments_in_turns(
        units, s, docs, segment_floats + sum_floats + group * kSegment * W,
        [&](const AttentionUnit& u, float* scratch) {
          std::fill_n(scratch + segment_floats + sum_floats, group * u.size() * W, 0.0f);
        },
        [&](const AttentionUnit& u, const AttentionUnit& block, float* scratch) {
          float* sums = scratch + segment_floats;
          key_segment(block, u.begin, u.end, scratch, sums, sums + sum_floats, u.begin, u.size());
        },
        [&](const AttentionUnit& u, const AttentionUnit& block, float* scratch, bool more) {
          const float* sums = scratch + segment_floats;
          key_sums.add(docs[u.doc], block, D, sums, sums + kKeys * W, W, more);
        },
        [&](const AttentionUnit& u, float* scratch) {
          const float* dq_sums = scratch + segment_floats + sum_floats;
          for (std::int64_t h = 0; h < group; ++h)
            for (std::int64_t i = 0; i < u.size(); ++i)
              store_row(dq[docs[u.doc].q0 + u.begin + i] + (u.head * group + h) * D,
                        dq_sums + (h * u.size() + i) * W, D, s.scale);
        });
    if constexpr (!std::is_same_v<T, float>) key_sums.store(dk, dv, 1.0f, docs);
    return;
  }

  // dq = scale * ds k, by blocks of queries.
  for_units(query_units(s, docs), kQueries * 3 * W + 2 * kGroup * kKeys,
            [&](const AttentionUnit& u, float* scratch) {
              const Document& doc = docs[u.doc];
              const std::int64_t g = u.head / group, m = u.size();
              float *query = scratch, *upper = query + kQueries * W, *sum = upper + kQueries * W;
              float *p = sum + kQueries * W, *ds = p + kGroup * kKeys;
              load_block(doc, u.head, u.begin, m, query, upper);
              std::fill_n(sum, m * W, 0.0f);
              const std::int64_t first = doc.first_key(u.begin, s.window) / kKeys * kKeys;
              for (std::int64_t j = first, end = doc.end_key(u.end - 1); j < end; j += kKeys)
                for (std::int64_t r = 0; r < m; r += kGroup) {
                  const std::int64_t rows = std::min(kGroup, m - r);
                  const std::int64_t n = std::min(kKeys, doc.end_key(u.begin + r + rows - 1) - j);
                  if (n <= 0) continue;
                  score_block(u.doc, u.head, u.begin + r, rows, j, n, query + r * W, upper + r * W,
                              p, ds);
                  accumulate(tile, ds, kKeys, 1, rows, n, keys.row(u.doc, g, j), W, sum + r * W);
                }
              for (std::int64_t i = 0; i < m; ++i)
                store_row(dq[doc.q0 + u.begin + i] + u.head * D, sum + i * W, D, s.scale);
            });

  for_units(key_units(s, docs), key_floats,
            [&](const AttentionUnit& u, float* scratch) { key_block(u, scratch, nullptr); });
}

#define LK_INSTANTIATE(T)                                                                    \
  template void flash_attention_forward<T>(Backend&, Matrix<T>, Matrix<float>, Matrix<T>,    \
                                           Matrix<T>, Matrix<T>, const AttentionShape&,      \
                                           const std::vector<Document>&);                    \
  template void flash_attention_backward<T>(                                                 \
      Backend&, Matrix<T>, Matrix<T>, Matrix<T>, Matrix<T>, Matrix<T>, Matrix<T>, Matrix<T>, \
      Matrix<T>, Matrix<float>, const AttentionShape&, const std::vector<Document>&);
LK_INSTANTIATE(float)
LK_INSTANTIATE(bf16)
#undef LK_INSTANTIATE

}  // namespace lk::cpu
