// What a mistyped name was meant to be.
#pragma once

#include <string>
#include <vector>

namespace lk {

// Letters to change, add or take away to make `b` of `a` (Levenshtein, "Binary codes capable of
// correcting deletions, insertions and reversals", 1966).
std::size_t edit_distance(const std::string& a, const std::string& b);

// The one of `names` that `wrong` was probably meant to be: at most a third of its letters differ,
// whatever their case. Empty if there is none.
std::string nearest_name(const std::string& wrong, const std::vector<std::string>& names);

}  // namespace lk
