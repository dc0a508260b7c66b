// Text from a file or a model, made safe for a message or a terminal.
#pragma once

#include <string>
#include <string_view>

namespace lk {

// "text" in double quotes; control characters, quotes and bytes outside ASCII as \xNN (a message
// must not carry a terminal's escape sequences), at most 80 characters of the text.
std::string printable(std::string_view text);

// The text as it may go to a terminal: control characters (C0 but \t, DEL, C1) and bytes that are
// not UTF-8 as \xNN, everything else as it is. Line feeds stay if the text may have several lines.
enum class Lines { One, Several };
std::string without_controls(std::string_view text, Lines lines);

}  // namespace lk
