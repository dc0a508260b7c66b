#include "text/bpe.h"

#include <array>
#include <bit>
#include <limits>
#include <queue>

#include "tensor/error.h"

namespace lk {

namespace {

constexpr std::int32_t kNoRank = std::numeric_limits<std::int32_t>::max();
// For pieces of up to this many symbols a linear search for the lowest rank beats a heap.
constexpr std::size_t kShort = 64;

std::uint64_t hash_pair(std::int32_t left, std::int32_t right) {
  std::uint64_t h = static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
                    static_cast<std::uint32_t>(right);
  h *= 0x9E3779B97F4A7C15ull;
  return h ^ h >> 32;
}

}  // namespace

BytePairs::BytePairs(Alphabet alphabet, const std::vector<Merge>& merges)
    : alphabet_(std::move(alphabet)) {
  slots_.resize(std::bit_ceil(2 * merges.size() + 2));
  mask_ = slots_.size() - 1;
  for (const Merge& m : merges) {
    std::uint64_t at = hash_pair(m.left, m.right) & mask_;
    while (slots_[at].left >= 0) at = (at + 1) & mask_;
    slots_[at] = {m.left, m.right, m.rank, m.result};
  }
}

const BytePairs::Slot* BytePairs::find(std::int32_t left, std::int32_t right) const {
  for (std::uint64_t at = hash_pair(left, right) & mask_;; at = (at + 1) & mask_) {
    const Slot& slot = slots_[at];
    if (slot.left == left && slot.right == right) return &slot;
    if (slot.left < 0) return nullptr;
  }
}

std::size_t BytePairs::encode(std::string_view piece, std::int32_t unknown, bool fuse,
                              std::vector<Symbol>& symbols) const {
  check(piece.size() < std::numeric_limits<std::uint32_t>::max(), "BytePairs: piece too long");
  const std::size_t lost = alphabet_.split(piece, unknown, fuse, symbols);
  if (symbols.size() <= kShort)
    merge_short(symbols);
  else
    merge_long(symbols);
  return lost;
}

void BytePairs::merge_short(std::vector<Symbol>& symbols) const {
  std::array<const Slot*, kShort> pair;  // pair[i]: the merge of symbols i and i+1, if there is one
  std::size_t n = symbols.size();
  for (std::size_t i = 0; i + 1 < n; ++i) pair[i] = find(symbols[i].id, symbols[i + 1].id);
  while (n > 1) {
    std::size_t best = n;
    std::int32_t rank = kNoRank;
    for (std::size_t i = 0; i + 1 < n; ++i)
      if (pair[i] && pair[i]->rank < rank) rank = pair[i]->rank, best = i;
    if (best == n) break;
    symbols[best].id = pair[best]->result;
    for (std::size_t i = best + 1; i + 1 < n; ++i) {
      symbols[i] = symbols[i + 1];
      pair[i] = pair[i + 1];
    }
    --n;
    if (best > 0) pair[best - 1] = find(symbols[best - 1].id, symbols[best].id);
    pair[best] = best + 1 < n ? find(symbols[best].id, symbols[best + 1].id) : nullptr;
  }
  symbols.resize(n);
}

// Merges long pieces with a heap of candidates over a doubly linked list; a candidate whose symbols
// have changed since it was pushed is skipped when it comes up.
void BytePairs::merge_long(std::vector<Symbol>& symbols) const {
  struct Candidate {
    std::int32_t rank;
    std::uint32_t at;
    const Slot* merge;
    bool operator<(const Candidate& o) const {  // std::priority_queue pops the greatest
      return rank != o.rank ? rank > o.rank : at > o.at;
    }
  };
  constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
  const auto n = static_cast<std::uint32_t>(symbols.size());
  std::vector<std::uint32_t> next(n), previous(n);
  std::vector<Candidate> candidates;
  candidates.reserve(n);
  auto candidate = [&](std::uint32_t at, auto&& take) {
    if (at == kNone || next[at] == kNone) return;
    if (const Slot* merge = find(symbols[at].id, symbols[next[at]].id))
      take(Candidate{merge->rank, at, merge});
  };
  for (std::uint32_t i = 0; i < n; ++i) {
    previous[i] = i == 0 ? kNone : i - 1;
    next[i] = i + 1 == n ? kNone : i + 1;
  }
  for (std::uint32_t i = 0; i < n; ++i)
    candidate(i, [&](const Candidate& c) { candidates.push_back(c); });
  std::priority_queue<Candidate> heap({}, std::move(candidates));

  while (!heap.empty()) {
    const Candidate c = heap.top();
    heap.pop();
    // A merged-away symbol has id -1, so it equals no merge's left side.
    if (symbols[c.at].id != c.merge->left || next[c.at] == kNone ||
        symbols[next[c.at]].id != c.merge->right)
      continue;
    const std::uint32_t gone = next[c.at];
    symbols[c.at].id = c.merge->result;
    symbols[gone].id = -1;
    next[c.at] = next[gone];
    if (next[gone] != kNone) previous[next[gone]] = c.at;
    auto push = [&](const Candidate& fresh) { heap.push(fresh); };
    candidate(previous[c.at], push);
    candidate(c.at, push);
  }
  std::size_t kept = 0;
  for (std::uint32_t i = 0; i != kNone; i = next[i]) symbols[kept++] = symbols[i];
  symbols.resize(kept);
}

}  // namespace lk
