// 5. Make a dropout mask wrong by one element, and find the check that sees it.
//
// A mask is drawn from Philox, element by element: element i is kept if its 16 bits are not below
// 65536 p (tensor/philox.h). Write a rule that differs for exactly one of the 64 elements of the
// test. Then say of each check whether it sees your mistake. The test makes each check and
// compares.
//
//   Share       the kept share is 1 - p, to four standard deviations
//   SameMask    gradcheck, with your mask in forward and in backward
//   OtherMask   gradcheck, with the library's mask in forward and yours in backward
//   Definition  your result equals Backend::dropout, element by element
//
// Hints
// - dropout_keeps(key, element, threshold) is the library's rule.
// - gradcheck asks whether backward is the derivative of the forward that you wrote, and not
//   whether that forward is the one that you meant.
#pragma once

#include "tensor/philox.h"

namespace lk::exercise {

struct Answers {
  bool share, same_mask, other_mask, definition;  // whether the check sees it
};

// ---- your code ----
inline bool keeps(const RandomKey& key, std::uint64_t element, std::uint32_t threshold) {
  return dropout_keeps(key, element, threshold);
}

inline constexpr Answers kSeen{
    .share = false, .same_mask = false, .other_mask = false, .definition = false};
// ---- end ----

}  // namespace lk::exercise
