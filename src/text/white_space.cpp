#include "text/white_space.h"

namespace lk {

bool is_space(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::size_t end_of_space(std::string_view s, std::size_t i) {
  while (i < s.size() && is_space(utf8_decode(s.data() + i)))
    i += utf8_length(static_cast<unsigned char>(s[i]));
  return i;
}

std::size_t previous_character(std::string_view s, std::size_t end) {
  do --end;
  while (end > 0 && (static_cast<unsigned char>(s[end]) & 0xC0) == 0x80);
  return end;
}

std::string_view strip_right(std::string_view s) {
  while (!s.empty()) {
    const std::size_t last = previous_character(s, s.size());
    if (!is_space(utf8_decode(s.data() + last))) break;
    s = s.substr(0, last);
  }
  return s;
}

std::string_view strip(std::string_view s) { return strip_right(s.substr(end_of_space(s, 0))); }

}  // namespace lk
