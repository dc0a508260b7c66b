// Python's view of white space, for strings and for templates themselves.
#pragma once

#include <string_view>

#include "text/utf8.h"

namespace lk::jinja {

// str.isspace(): White_Space and the four ASCII separators.
bool is_space(char32_t c);
// The first offset at or after i that is not white space.
std::size_t end_of_space(std::string_view s, std::size_t i);
// str.rstrip().
std::string_view strip_right(std::string_view s);
// The offset of the character that ends at `end` (> 0).
std::size_t previous_character(std::string_view s, std::size_t end);

}  // namespace lk::jinja
