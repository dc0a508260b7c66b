// How attention is cut into units of work, shared by flash_attention.cpp and
// flash_attention_bf16.cpp.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "cpu/fast/flash_attention.h"
#include "cpu/fast/simd.h"
#include "cpu/thread_scratch.h"

namespace lk::cpu {

inline constexpr std::int64_t kQueries = 48, kKeys = 64;  // a block of scores
// Queries whose part of dk and dv is one sum.
inline constexpr std::int64_t kSegment = 2 * kQueries;
// Rows of a block that are worked on together. Only the keys that the last of them sees are
// computed, so little above the diagonal is. A multiple of the tiles' rows.
inline constexpr std::int64_t kGroup = 12;
// The running maximum before the first key. It is finite, so that the difference of two is 0, not
// NaN.
inline constexpr float kLowest = -1e30f;

inline std::int64_t round_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// A block of queries, or of keys, of one head of one document.
struct AttentionUnit {
  std::size_t doc;
  std::int64_t head, begin, end;
  std::int64_t size() const { return end - begin; }
};

// All blocks of queries; those with the most keys come first.
inline std::vector<AttentionUnit> query_units(const AttentionShape& s,
                                              const std::vector<Document>& docs) {
  std::vector<AttentionUnit> units;
  for (std::size_t i = 0; i < docs.size(); ++i)
    for (std::int64_t n = docs[i].queries(), end = n; end > 0;
         end = (end - 1) / kQueries * kQueries)
      for (std::int64_t h = 0; h < s.n_heads; ++h)
        units.push_back({i, h, (end - 1) / kQueries * kQueries, end});
  return units;
}

// All blocks of keys of all key/value heads.
inline std::vector<AttentionUnit> key_units(const AttentionShape& s,
                                            const std::vector<Document>& docs) {
  std::vector<AttentionUnit> units;
  for (std::size_t i = 0; i < docs.size(); ++i)
    for (std::int64_t j = 0; j < docs[i].keys(); j += kKeys)
      for (std::int64_t g = 0; g < s.n_kv_heads; ++g)
        units.push_back({i, g, j, std::min(docs[i].keys(), j + kKeys)});
  return units;
}

// All key/value heads of all documents; those with the most keys come first.
inline std::vector<AttentionUnit> head_units(const AttentionShape& s,
                                             const std::vector<Document>& docs) {
  std::vector<AttentionUnit> units;
  for (std::size_t i = 0; i < docs.size(); ++i)
    for (std::int64_t g = 0; g < s.n_kv_heads; ++g) units.push_back({i, g, 0, docs[i].keys()});
  std::stable_sort(units.begin(), units.end(),
                   [](const auto& x, const auto& y) { return x.end > y.end; });
  return units;
}
// Whether a thread of the backward pass may own a whole head_units(): there are enough for all, and
// its `floats` of dq, `width` for each query of the head's group, fit its own cache.
inline bool one_thread_a_head(const AttentionShape& s, const std::vector<Document>& docs,
                              std::int64_t width, std::int64_t& floats) {
  constexpr std::int64_t kOwnedFloats = 1 << 18;
  std::int64_t longest = 0;
  for (const Document& doc : docs) longest = std::max(longest, doc.queries());
  floats = s.n_heads / s.n_kv_heads * longest * width;
  const auto n_heads = static_cast<std::int64_t>(docs.size()) * s.n_kv_heads;
  return floats <= kOwnedFloats && n_heads >= 3 * std::int64_t{omp_get_max_threads()};
}

// Calls f(begin, end) for the segments of a document's queries, the last first.
template <class F>
void for_segments(const Document& doc, const F& f) {
  for (std::int64_t begin, end = doc.queries(); end > 0; end = begin) {
    begin = (end - 1) / kSegment * kSegment;
    f(begin, end);
  }
}

// All segments of all documents' queries and key/value heads: those of the same queries lie side by side, the
// last queries of a document first. None where a document has keys that come before all its queries.
inline std::vector<AttentionUnit> segment_units(const AttentionShape& s,
                                                const std::vector<Document>& docs) {
  std::vector<AttentionUnit> units;
  for (std::size_t i = 0; i < docs.size(); ++i) {
    if (docs[i].keys() != docs[i].queries()) return {};
    for_segments(docs[i], [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t g = 0; g < s.n_kv_heads; ++g) units.push_back({i, g, begin, end});
    });
  }
  return units;
}

// Runs f(unit, scratch) for all units in parallel; scratch is `floats` floats of the thread's own. Threads take
// up units in order, so one may wait for an earlier one.
template <class F>
void for_units(const std::vector<AttentionUnit>& units, std::int64_t floats, const F& f) {
  ThreadScratch scratch(floats);
#pragma omp parallel if (units.size() > 1)
  {
    float* own = scratch.mine();
#pragma omp for schedule(monotonic : dynamic)
    for (std::size_t n = 0; n < units.size(); ++n) f(units[n], own);
  }
}

// Note [Turns]: a unit is a segment of queries of a key/value head, whose dq is its own. It adds to dk and dv
// block of keys by block of keys, each time after the segment behind its own, which threads take up before
// it and which goes through the blocks in the same order: the wait is short, and the order of sums fixed.
//
// Calls, with the thread's own `floats` floats: begin(unit, scratch); for each block of keys that the unit's
// queries see compute(unit, block, scratch) and then, in its turn, add(unit, block, scratch, more), where `more` says
// whether another has added to that block; end(unit, scratch).
template <class Begin, class Compute, class Add, class End>
void for_segments_in_turns(const std::vector<AttentionUnit>& units, const AttentionShape& s,
                           const std::vector<Document>& docs, std::int64_t floats,
                           const Begin& begin, const Compute& compute, const Add& add,
                           const End& end) {
  const auto first_block = [&](const AttentionUnit& u) {
    return docs[u.doc].first_key(u.begin, s.window) / kKeys * kKeys;
  };
  std::vector<std::atomic<std::int64_t>> added(units.size());  // the keys before this one are done
  for (std::size_t n = 0; n < units.size(); ++n) added[n] = first_block(units[n]);
  for_units(units, floats, [&](const AttentionUnit& u, float* scratch) {
    const Document& doc = docs[u.doc];
    const auto n = static_cast<std::size_t>(&u - units.data());
    const std::size_t before = n - static_cast<std::size_t>(s.n_kv_heads);
    const bool waits = u.end < doc.queries();
    const std::int64_t first = waits ? first_block(units[before]) : doc.keys();
    begin(u, scratch);
    for (std::int64_t j = first_block(u); j < doc.end_key(u.end - 1); j += kKeys) {
      const AttentionUnit block{u.doc, u.head, j, std::min(doc.keys(), j + kKeys)};
      compute(u, block, scratch);
      if (waits)
        while (added[before].load() <= j) std::this_thread::yield();
      add(u, block, scratch, j >= first);
      added[n] = j + kKeys;
    }
    added[n] = INT64_MAX;
    end(u, scratch);
  });
}
// The segments of a backward pass that takes turns; none where they are too few for all threads.
inline std::vector<AttentionUnit> units_in_turns(const AttentionShape& s,
                                                 const std::vector<Document>& docs) {
  std::vector<AttentionUnit> units = segment_units(s, docs);
  if (units.size() < 3 * static_cast<std::size_t>(omp_get_max_threads())) units.clear();
  return units;
}

template <class T>
LK_SIMD void store_row(T* y, const float* x, std::int64_t D, float factor) {
#pragma omp simd
  for (std::int64_t d = 0; d < D; ++d) y[d] = narrow<T>(factor * x[d]);
}
// y = x, or y += x if `more`.
LK_SIMD void add_row(float* y, const float* x, std::int64_t n, bool more) {
  if (more) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) y[i] += x[i];
  } else {
    std::copy_n(x, n, y);
  }
}
// Where dk and dv are added up in turns: in F32 in their own place. Whether a pass takes turns depends on the threads, what it
// allocates does not.
class KeySums {
  Tensor dk_, dv_;

 public:
  Matrix<float> dk, dv;

  KeySums(Backend&, const Matrix<float>& to_dk, const Matrix<float>& to_dv)
      : dk(to_dk), dv(to_dv) {}
  KeySums(Backend& backend, const Matrix<bf16>& to_dk, const Matrix<bf16>& to_dv)
      : dk_(backend.empty(Tag::Workspace, DType::F32, {to_dk.rows, to_dk.cols})),
        dv_(backend.empty(Tag::Workspace, DType::F32, {to_dv.rows, to_dv.cols})),
        dk(matrix<float>(dk_)),
        dv(matrix<float>(dv_)) {}

  // The sums of a block of keys of head block.head become dk_rows and dv_rows (keys, D), whose rows lie `width` floats
  // apart, or have them added if `more`.
  void add(const Document& doc, const AttentionUnit& block, std::int64_t D, const float* dk_rows,
           const float* dv_rows, std::int64_t width, bool more) const {
    for (std::int64_t i = 0; i < block.size(); ++i) {
      const std::int64_t row = doc.k0 + block.begin + i, at = block.head * D;
      add_row(dk[row] + at, dk_rows + i * width, D, more);
      add_row(dv[row] + at, dv_rows + i * width, D, more);
    }
  }

  // to_dk = scale * dk, to_dv = dv, of the documents' rows.
  void store(const Matrix<bf16>& to_dk, const Matrix<bf16>& to_dv, float scale,
             const std::vector<Document>& docs) const {
    for (const Document& doc : docs)
      parallel_for(doc.keys(), doc.keys() * dk.cols, [&](std::int64_t j) {
        store_row(to_dk[doc.k0 + j], dk[doc.k0 + j], dk.cols, scale);
        store_row(to_dv[doc.k0 + j], dv[doc.k0 + j], dv.cols, 1.0f);
      });
  }
};

template <class T>
LK_SIMD float dot_row(const T* a, const T* b, std::int64_t D) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t d = 0; d < D; ++d) sum += widen(a[d]) * widen(b[d]);
  return sum;
}

}  // namespace lk::cpu
