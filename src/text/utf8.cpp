#include "text/utf8.h"

namespace lk {

std::size_t utf8_valid_prefix(std::string_view text) {
  const auto* b = reinterpret_cast<const unsigned char*>(text.data());
  const std::size_t n = text.size();
  std::size_t i = 0;
  auto continues = [&](std::size_t at) { return at < n && (b[at] & 0xC0) == 0x80; };
  while (i < n) {
    const unsigned char c = b[i];
    if (c < 0x80) {
      ++i;
    } else if (c >= 0xC2 && c < 0xE0) {
      if (!continues(i + 1)) break;
      i += 2;
    } else if (c >= 0xE0 && c < 0xF0) {
      if (!continues(i + 1) || !continues(i + 2)) break;
      if ((c == 0xE0 && b[i + 1] < 0xA0) || (c == 0xED && b[i + 1] >= 0xA0)) break;
      i += 3;
    } else if (c >= 0xF0 && c < 0xF5) {
      if (!continues(i + 1) || !continues(i + 2) || !continues(i + 3)) break;
      if ((c == 0xF0 && b[i + 1] < 0x90) || (c == 0xF4 && b[i + 1] >= 0x90)) break;
      i += 4;
    } else {
      break;
    }
  }
  return i;
}

std::string utf8_repaired(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t valid = utf8_valid_prefix(text);
    out += text.substr(0, valid);
    text.remove_prefix(valid);
    if (text.empty()) break;
    utf8_append(out, 0xFFFD);
    text.remove_prefix(1);
  }
  return out;
}

}  // namespace lk
