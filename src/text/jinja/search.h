// Searches strings in time that grows with the lengths alone, whatever the strings hold.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "text/jinja/value.h"

namespace lk::jinja {

// Where `what`, which is not empty, begins in `text`: matches that do not overlap, at most `most`
// (-1: all) counted from the left or from the right, in the order of the text.
// Source: Knuth, Morris, Pratt, "Fast pattern matching in strings", SIAM J. Comput., 1977.
std::vector<std::size_t> occurrences(std::string_view text, std::string_view what,
                                     std::int64_t most, bool from_right, Budget& budget);
// Whether `text` holds `what`, which may be empty.
bool holds(std::string_view text, std::string_view what, Budget& budget);
// The number of characters.
std::int64_t count_characters(std::string_view text, Budget& budget);

}  // namespace lk::jinja
