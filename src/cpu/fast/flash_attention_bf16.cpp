// flash_attention.cpp for processors that multiply pairs of BF16 numbers (bf16_tile.h).
//
// Queries and output gradients are read in place; keys and values are packed as pairs once, heads
// apart. In the backward pass a block of scores is computed once and used for all three gradients
// if there is enough work for all threads: by key/value heads of documents, or in turns (Note [Turns] in
// attention_units.h). Otherwise dq is computed by blocks of queries and dk, dv by blocks of keys, and
// scores are computed twice. All ways add the same numbers in the same order, so nothing depends on the
// number of threads.
#include "cpu/fast/flash_attention_bf16.h"

#include <cmath>

#include "cpu/fast/attention_units.h"

namespace lk::cpu {
namespace {

using Half = std::uint16_t;
constexpr std::int64_t kWide = Bf16Tile::kWide;
static_assert(kKeys == ScoreBlock::kColumns);

// Keys (or values) of all heads and documents: `rows` as the right operand of products over keys,
// `columns` as the right operand of products over D (its transpose). Documents start at a new
// panel.
class PackedHeads {
 public:
  PackedHeads(const Bf16Tile& tile, Backend& backend, const AttentionShape& shape,
              const std::vector<Document>& docs, bool rows, bool columns)
      : tile_(tile),
        D_(shape.head_dim),
        width_(round_up(D_, 16)),
        depth_(round_up(D_, 2)),
        heads_(shape.n_kv_heads) {
    for (const Document& doc : docs) {
      start_.push_back(keys_);
      keys_ += round_up(doc.keys(), kWide);
    }
    if (rows) rows_ = backend.empty(Tag::Workspace, DType::BF16, {heads_, keys_ * width_});
    if (columns) columns_ = backend.empty(Tag::Workspace, DType::BF16, {heads_, keys_ * depth_});
  }

  // Rows of document i and head g from key j (even) on: pairs of keys, `width` columns.
  const Half* rows(std::size_t i, std::int64_t g, std::int64_t j) const {
    return at(rows_, i, g, j, width_);
  }
  // Panels of kWide keys from key j (a multiple of kWide) on: pairs of D.
  Bf16Panels panels(std::size_t i, std::int64_t g, std::int64_t j) const {
    return {at(columns_, i, g, j, depth_), 2 * kWide, kWide * depth_};
  }

  // Fills both forms from x (T, G*D).
  void fill(Matrix<bf16> x, const std::vector<Document>& docs) const {
    const std::int64_t n = static_cast<std::int64_t>(docs.size()) * heads_;
    parallel_for(n, x.rows * x.cols, [&](std::int64_t unit) {
      const auto i = static_cast<std::size_t>(unit / heads_);
      const std::int64_t g = unit % heads_, keys = docs[i].keys();
      const Half* from = bits(x[docs[i].k0]) + g * D_;
      if (rows_) tile_.pack_rows(from, x.ld, keys, D_, width_, at(rows_, i, g, 0, width_));
      for (std::int64_t j = 0; columns_ && j < keys; j += kWide)
        tile_.pack_columns(from + j * x.ld, x.ld, D_, std::min(kWide, keys - j), kWide,
                           at(columns_, i, g, j, depth_));
    });
  }

 private:
  Half* at(const Tensor& form, std::size_t i, std::int64_t g, std::int64_t j,
           std::int64_t per_key) const {
    return reinterpret_cast<Half*>(form.data<bf16>()) + (g * keys_ + start_[i] + j) * per_key;
  }

  const Bf16Tile& tile_;
  std::int64_t D_, width_, depth_, heads_, keys_ = 0;
  std::vector<std::int64_t> start_;
  Tensor rows_, columns_;
};

// out (rows, kKeys) = left (rows,D) times the transpose of keys [j, j + n).
void scores(const Bf16Tile& tile, const PackedHeads& packed, std::size_t doc, std::int64_t g,
            std::int64_t j, std::int64_t n, const bf16* left, std::int64_t ld, std::int64_t rows,
            std::int64_t D, float* out) {
  tile.multiply_f32(rows, round_up(n, kWide), D, {bits(left), ld, 2}, packed.panels(doc, g, j), out,
                    kKeys, 1.0f, false);
}

// out (rows,width) += left (rows,K) times right, K / 2 rows of `width` pairs.
void accumulate(const Bf16Tile& tile, Bf16Left left, std::int64_t rows, std::int64_t K,
                const Half* right, std::int64_t width, float* out) {
  tile.multiply_f32(rows, width, K, left, {right, 2 * width, 2 * kWide}, out, width, 1.0f, true);
}

// What all units of one backward pass share.
struct Backward {
  const Bf16Tile& tile;
  const PackedHeads &keys, &vals;
  Matrix<bf16> dq, dk, dv, dout, q;
  Matrix<float> lse, delta;
  const AttentionShape& s;
  const std::vector<Document>& docs;

  std::int64_t D() const { return s.head_dim; }
  std::int64_t width() const { return round_up(D(), 16); }

  // A thread's arrays in `scratch`.
  static constexpr std::int64_t kHalves = 2 * kQueries * kKeys + kGroup * kKeys;
  struct Arrays {
    float *score, *upper;                  // kGroup x kKeys
    float *dk, *dv, *dk_total, *dv_total;  // kKeys x width
    Half *p, *ds, *ds_rows, *q, *dout;     // pairs of queries; ds_rows (kGroup, kKeys)
  };
  std::int64_t scratch_floats() const {
    return 2 * kGroup * kKeys + 4 * kKeys * width() + kHalves / 2 + kQueries * width();
  }
  Arrays arrays(float* scratch) const {
    Arrays a{};
    a.score = scratch, a.upper = a.score + kGroup * kKeys;
    a.dk = a.upper + kGroup * kKeys, a.dv = a.dk + kKeys * width();
    a.dk_total = a.dv + kKeys * width(), a.dv_total = a.dk_total + kKeys * width();
    a.p = reinterpret_cast<Half*>(a.dv_total + kKeys * width()), a.ds = a.p + kQueries * kKeys;
    a.ds_rows = a.ds + kQueries * kKeys, a.q = a.ds_rows + kGroup * kKeys;
    a.dout = a.q + kQueries * width();
    return a;
  }

  // Queries [i, i + m) of head h against keys [j, j + n): adds to dq_sum (m,width) if it is not
  // null, and to a.dk and a.dv (n,width) if `for_keys`.
  void block(const Arrays& a, std::size_t d, std::int64_t h, std::int64_t i, std::int64_t m,
             std::int64_t j, std::int64_t n, float* dq_sum, bool for_keys) const {
    const Document& doc = docs[d];
    if (doc.end_key(i + m - 1) <= j || doc.first_key(i, s.window) >= j + n) return;
    const std::int64_t W = width(), g = h / (s.n_heads / s.n_kv_heads), t = doc.q0 + i;
    std::int64_t first = m;  // first row that sees a key
    for (std::int64_t r = 0; r < m; r += kGroup) {
      const std::int64_t rows = std::min(kGroup, m - r);
      const std::int64_t seen = std::min(n, doc.end_key(i + r + rows - 1) - j);
      if (seen <= 0) continue;
      first = std::min(first, r);
      scores(tile, keys, d, g, j, seen, q[t + r] + h * D(), q.ld, rows, D(), a.score);
      scores(tile, vals, d, g, j, seen, dout[t + r] + h * D(), dout.ld, rows, D(), a.upper);
      tile.softmax_backward({rows, doc.end_key(i + r) - j, s.window, s.scale}, a.score, a.upper,
                            lse[h] + t + r, delta[h] + t + r, a.ds_rows,
                            for_keys ? a.p + r * kKeys : nullptr,
                            for_keys ? a.ds + r * kKeys : nullptr);
      if (dq_sum)
        accumulate(tile, {a.ds_rows, kKeys, 2}, rows, round_up(seen, 2), keys.rows(d, g, j), W,
                   dq_sum + r * W);
    }
    if (!for_keys) return;
    tile.pack_rows(bits(q[t]) + h * D(), q.ld, m, D(), W, a.q);
    tile.pack_rows(bits(dout[t]) + h * D(), dout.ld, m, D(), W, a.dout);
    // A panel of keys meets the queries from the first pair that sees its first key.
    for (std::int64_t c = 0; c < n; c += kWide) {
      const std::int64_t diagonal = j + c - (doc.keys() - doc.queries()) - i;
      const std::int64_t r = std::max(first, diagonal) / 2 * 2, rows = std::min(kWide, n - c);
      if (r >= m) break;
      accumulate(tile, {a.p + r * kKeys + 2 * c, 2, 2 * kKeys}, rows, m - r, a.dout + r * W, W,
                 a.dv + c * W);
      accumulate(tile, {a.ds + r * kKeys + 2 * c, 2, 2 * kKeys}, rows, m - r, a.q + r * W, W,
                 a.dk + c * W);
    }
  }

  void store(Matrix<bf16> to, std::int64_t row, std::int64_t head, const float* from,
             std::int64_t rows, float factor) const {
    for (std::int64_t r = 0; r < rows; ++r)
      store_row(to[row + r] + head * D(), from + r * width(), D(), factor);
  }

  // a.dk and a.dv: what queries [begin, end) add to dk and dv of a block of keys. dq_sums (group, dq_rows, width)
  // receives dq of the queries from dq_begin on, or is null.
  void key_segment(const AttentionUnit& u, std::int64_t begin, std::int64_t end, const Arrays& a,
                   float* dq_sums, std::int64_t dq_begin, std::int64_t dq_rows) const {
    const std::int64_t group = s.n_heads / s.n_kv_heads, W = width();
    std::fill_n(a.dk, u.size() * W, 0.0f);
    std::fill_n(a.dv, u.size() * W, 0.0f);
    for (std::int64_t h = 0; h < group; ++h)
      for (std::int64_t i = begin; i < end; i += kQueries)
        block(a, u.doc, u.head * group + h, i, std::min(kQueries, end - i), u.begin, u.size(),
              dq_sums ? dq_sums + (h * dq_rows + i - dq_begin) * W : nullptr, true);
  }

  // dk and dv of a block of keys: sums over segments of queries, the last first. dq_sums (group, queries, width)
  // receives dq, or is null.
  void key_block(const AttentionUnit& u, const Arrays& a, float* dq_sums) const {
    const Document& doc = docs[u.doc];
    bool more = false;
    for_segments(doc, [&](std::int64_t begin, std::int64_t end) {
      if (doc.end_key(end - 1) <= u.begin || doc.first_key(begin, s.window) >= u.end) return;
      key_segment(u, begin, end, a, dq_sums, 0, doc.queries());
      add_row(a.dk_total, a.dk, u.size() * width(), more);
      add_row(a.dv_total, a.dv, u.size() * width(), more);
      more = true;
    });
    if (!more) std::fill_n(a.dk_total, 2 * kKeys * width(), 0.0f);  // nobody sees them
    store(dk, doc.k0 + u.begin, u.head, a.dk_total, u.size(), s.scale);
    store(dv, doc.k0 + u.begin, u.head, a.dv_total, u.size(), 1.0f);
  }

  // All gradients of a key/value head of a document.
  void head(std::size_t d, std::int64_t g, const Arrays& a, float* dq_sums) const {
    const Document& doc = docs[d];
    const std::int64_t group = s.n_heads / s.n_kv_heads, W = width(), T = doc.queries();
    std::fill_n(dq_sums, group * T * W, 0.0f);
    for (std::int64_t j = 0; j < doc.keys(); j += kKeys)
      key_block({d, g, j, std::min(doc.keys(), j + kKeys)}, a, dq_sums);
    for (std::int64_t h = 0; h < group; ++h)
      store(dq, doc.q0, g * group + h, dq_sums + h * T * W, T, s.scale);
  }

  // dq of a block of queries.
  void query_block(const AttentionUnit& u, const Arrays& a, float* dq_sum) const {
    const Document& doc = docs[u.doc];
    std::fill_n(dq_sum, u.size() * width(), 0.0f);
    for (std::int64_t j = 0; j < doc.end_key(u.end - 1); j += kKeys)
      block(a, u.doc, u.head, u.begin, u.size(), j, std::min(kKeys, doc.keys() - j), dq_sum, false);
    store(dq, doc.q0 + u.begin, u.head, dq_sum, u.size(), s.scale);
  }
};

}  // namespace

void bf16_attention_forward(const Bf16Tile& tile, Backend& backend, Matrix<bf16> o,
                            Matrix<float> lse, Matrix<bf16> q, Matrix<bf16> k, Matrix<bf16> v,
                            const AttentionShape& s, const std::vector<Document>& docs) {
  PackedHeads keys(tile, backend, s, docs, false, true), vals(tile, backend, s, docs, true, false);
  keys.fill(k, docs);
  vals.fill(v, docs);
  const std::int64_t D = s.head_dim, W = round_up(D, 16), group = s.n_heads / s.n_kv_heads;
  for_units(query_units(s, docs), kQueries * (W + 2) + kGroup * kKeys * 3 / 2,
            [&](const AttentionUnit& u, float* scratch) {
              const Document& doc = docs[u.doc];
              const std::int64_t g = u.head / group, m = u.size(), t = doc.q0 + u.begin;
              float *out = scratch, *max = out + kQueries * W, *sum = max + kQueries;
              float* score = sum + kQueries;
              Half* p = reinterpret_cast<Half*>(score + kGroup * kKeys);
              std::fill_n(out, m * W, 0.0f);
              std::fill_n(max, m, kLowest);
              std::fill_n(sum, m, 0.0f);
              const std::int64_t first = doc.first_key(u.begin, s.window) / kKeys * kKeys;
              for (std::int64_t j = first, end = doc.end_key(u.end - 1); j < end; j += kKeys)
                for (std::int64_t r = 0; r < m; r += kGroup) {
                  const std::int64_t rows = std::min(kGroup, m - r);
                  const std::int64_t n = std::min(kKeys, doc.end_key(u.begin + r + rows - 1) - j);
                  if (n <= 0) continue;
                  scores(tile, keys, u.doc, g, j, n, q[t + r] + u.head * D, q.ld, rows, D, score);
                  tile.softmax({rows, doc.end_key(u.begin + r) - j, s.window, s.scale}, score, p,
                               max + r, sum + r, out + r * W, W);
                  accumulate(tile, {p, kKeys, 2}, rows, round_up(n, 2), vals.rows(u.doc, g, j), W,
                             out + r * W);
                }
              for (std::int64_t i = 0; i < m; ++i) {
                store_row(o[t + i] + u.head * D, out + i * W, D, 1.0f / sum[i]);
                lse[u.head][t + i] = max[i] + std::log(sum[i]);
              }
            });
}

void bf16_attention_backward(const Bf16Tile& tile, Backend& backend, Matrix<bf16> dq,
                             Matrix<bf16> dk, Matrix<bf16> dv, Matrix<bf16> dout, Matrix<bf16> q,
                             Matrix<bf16> k, Matrix<bf16> v, Matrix<bf16> o, Matrix<float> lse,
                             const AttentionShape& s, const std::vector<Document>& docs) {
  PackedHeads keys(tile, backend, s, docs, true, true), vals(tile, backend, s, docs, false, true);
  keys.fill(k, docs);
  vals.fill(v, docs);
  Tensor delta_store = backend.empty(Tag::Workspace, DType::F32, {s.n_heads, q.rows});
  Matrix<float> delta = matrix<float>(delta_store);
  const KeySums key_sums(backend, dk, dv);
  const std::int64_t D = s.head_dim;
  parallel_for(q.rows, q.rows * q.cols, [&](std::int64_t t) {
    for (std::int64_t h = 0; h < s.n_heads; ++h)
      delta[h][t] = dot_row(dout[t] + h * D, o[t] + h * D, D);
  });
  const Backward pass{tile, keys, vals, dq, dk, dv, dout, q, lse, delta, s, docs};
  const std::int64_t W = pass.width(), scratch = pass.scratch_floats();
  if (std::int64_t own = 0; one_thread_a_head(s, docs, W, own)) {
    for_units(head_units(s, docs), scratch + own, [&](const AttentionUnit& u, float* memory) {
      pass.head(u.doc, u.head, pass.arrays(memory), memory + scratch);
    });
    return;
  }
  if (const std::vector<AttentionUnit> units = units_in_turns(s, docs); !units.empty()) {
    const std::int64_t group = s.n_heads / s.n_kv_heads;
    for_segments_in_turns(
        units, s, docs, scratch + group * kSegment * W,
        [&](const AttentionUnit& u, float* memory) {
          std::fill_n(memory + scratch, group * u.size() * W, 0.0f);
        },
        [&](const AttentionUnit& u, const AttentionUnit& block, float* memory) {
          pass.key_segment(block, u.begin, u.end, pass.arrays(memory), memory + scratch, u.begin,
                           u.size());
        },
        [&](const AttentionUnit& u, const AttentionUnit& block, float* memory, bool more) {
          const Backward::Arrays a = pass.arrays(memory);
          key_sums.add(docs[u.doc], block, D, a.dk, a.dv, W, more);
        },
        [&](const AttentionUnit& u, float* memory) {
          for (std::int64_t h = 0; h < group; ++h)
            pass.store(dq, docs[u.doc].q0 + u.begin, u.head * group + h,
                       memory + scratch + h * u.size() * W, u.size(), s.scale);
        });
    key_sums.store(dk, dv, s.scale, docs);
    return;
  }
  for_units(query_units(s, docs), scratch + kQueries * W,
            [&](const AttentionUnit& u, float* memory) {
              pass.query_block(u, pass.arrays(memory), memory + scratch);
            });
  for_units(key_units(s, docs), scratch, [&](const AttentionUnit& u, float* memory) {
    pass.key_block(u, pass.arrays(memory), nullptr);
  });
}

}  // namespace lk::cpu
