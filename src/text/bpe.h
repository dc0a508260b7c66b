// Byte pair encoding of one piece: repeatedly merge the pair of neighbours with the lowest rank,
// the leftmost of equals, until no pair has one. Source: Sennrich, Haddow, Birch, ACL 2016.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "text/alphabet.h"

namespace lk {

class BytePairs {
 public:
  struct Merge {
    std::int32_t left, right, result;
    std::int32_t rank;  // the lowest rank merges first; merges may share one
  };

  // No pair may appear twice in `merges`.
  BytePairs(Alphabet alphabet, const std::vector<Merge>& merges);

  // Replaces `symbols` by the tokens of `piece` (under 4 GiB). Returns how many bytes vanished, as
  // Alphabet::split says. O(n log n).
  std::size_t encode(std::string_view piece, std::int32_t unknown, bool fuse,
                     std::vector<Symbol>& symbols) const;

 private:
  struct Slot {
    std::int32_t left = -1, right = -1, rank = 0, result = -1;
  };
  const Slot* find(std::int32_t left, std::int32_t right) const;
  void merge_short(std::vector<Symbol>& symbols) const;
  void merge_long(std::vector<Symbol>& symbols) const;

  Alphabet alphabet_;
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  std::uint64_t mask_ = 0;
};

}  // namespace lk
