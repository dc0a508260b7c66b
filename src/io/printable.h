// Text from a file, made safe for a message: quoted, escaped, cut.
#pragma once

#include <string>
#include <string_view>

namespace lk {

// "text" in double quotes; control characters, quotes and bytes outside ASCII as \xNN (a message
// must not carry a terminal's escape sequences), at most 80 characters of the text.
std::string printable(std::string_view text);

}  // namespace lk
