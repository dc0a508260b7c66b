// White space as Python sees it: for templates, and for scores that must equal Python's.
#pragma once

#include <string_view>

#include "io/utf8.h"

namespace lk {

// str.isspace() of a character: White_Space and the four ASCII separators.
bool is_space(char32_t c);
// The first offset at or after i that is not white space; `s` is valid UTF-8.
std::size_t end_of_space(std::string_view s, std::size_t i);
// str.rstrip() of valid UTF-8.
std::string_view strip_right(std::string_view s);
// str.strip() of valid UTF-8.
std::string_view strip(std::string_view s);
// The offset of the character that ends at `end` (> 0).
std::size_t previous_character(std::string_view s, std::size_t end);

}  // namespace lk
