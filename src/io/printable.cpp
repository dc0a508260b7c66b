#include "io/printable.h"

#include <algorithm>

#include "io/hex.h"
#include "io/utf8.h"

namespace lk {

std::string printable(std::string_view text) {
  constexpr std::size_t kMax = 80;
  std::string out = "\"";
  for (char c : text.substr(0, kMax)) {
    auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (u < 0x20 || u >= 0x7f) {
      out += "\\x";
      append_hex(out, u);
    } else {
      out += c;
    }
  }
  return out + (text.size() > kMax ? "...\"" : "\"");
}

std::string without_controls(std::string_view text, Lines lines) {
  std::string out;
  const char *p = text.data(), *end = p + text.size();
  while (p != end) {
    const std::size_t n = utf8_checked_length(p, end);
    const char32_t c = n > 0 ? utf8_decode(p) : 0;
    const bool shown =
        (c == '\n' && lines == Lines::Several) || c == '\t' || (c >= 0x20 && c < 0x7f) || c >= 0xa0;
    for (const char* stop = p + std::max<std::size_t>(n, 1); p != stop; ++p) {
      if (shown) {
        out += *p;
      } else {
        out += "\\x";
        append_hex(out, static_cast<unsigned char>(*p));
      }
    }
  }
  return out;
}

}  // namespace lk
