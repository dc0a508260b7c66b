// Byte pair encoding of one piece: repeatedly merge the pair of neighbours with the lowest rank,
// the leftmost of equals, until no pair has one. Source: Sennrich, Haddow, Birch, ACL 2016.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace lk {

class BytePairs {
 public:
  struct Merge {
    std::int32_t left, right, result;
  };

  // `byte_ids`: the id of each byte alone, -1 if the vocabulary has none. `merges` in rank order,
  // no pair twice.
  BytePairs(const std::vector<std::int32_t>& byte_ids, const std::vector<Merge>& merges);

  // A token of a piece: its id and the offset of its first byte.
  struct Symbol {
    std::int32_t id;
    std::uint32_t begin;
  };
  // Replaces `symbols` by the tokens of `piece` (under 4 GiB). Bytes without an id become `unknown`
  // (one for a run of them if `fuse`), or vanish if that is -1, as in the reference; returns how
  // many vanished. O(n log n).
  std::size_t encode(std::string_view piece, std::int32_t unknown, bool fuse,
                     std::vector<Symbol>& symbols) const;

 private:
  struct Slot {
    std::int32_t left = -1, right = -1, rank = 0, result = -1;
  };
  const Slot* find(std::int32_t left, std::int32_t right) const;
  void merge_short(std::vector<Symbol>& symbols) const;
  void merge_long(std::vector<Symbol>& symbols) const;

  std::vector<std::int32_t> byte_ids_;
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  std::uint64_t mask_ = 0;
};

}  // namespace lk
