// Text from a file, made safe for a message: quoted, escaped, cut.
#pragma once

#include <string>
#include <string_view>

namespace lk {

// "text" in double quotes; control characters, quotes and bytes outside ASCII as \xNN (a message
// must not carry a terminal's escape sequences), at most 80 characters of the text.
std::string printable(std::string_view text);

// Whether `text` is well-formed UTF-8 (RFC 3629: no overlong forms, no surrogates, at most
// U+10FFFF).
bool is_utf8(std::string_view text);
// The length in bytes of the well-formed UTF-8 character at p, or 0 (also for p == end).
std::size_t utf8_length(const char* p, const char* end);

}  // namespace lk
