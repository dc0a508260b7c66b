#include "io/utf8.h"

namespace lk {

std::size_t utf8_checked_length(const char* p, const char* end) {
  if (p == end) return 0;
  auto byte = [&](int i) { return static_cast<unsigned char>(p[i]); };
  auto continues = [&](int i) { return p + i < end && (byte(i) & 0xc0) == 0x80; };
  unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xc2) return 0;  // a continuation byte, or an overlong two-byte form
  if (lead < 0xe0) return continues(1) ? 2 : 0;
  if (lead < 0xf0) {
    if (!continues(1) || !continues(2)) return 0;
    if (lead == 0xe0 && byte(1) < 0xa0) return 0;   // overlong
    if (lead == 0xed && byte(1) >= 0xa0) return 0;  // surrogates
    return 3;
  }
  if (lead > 0xf4 || !continues(1) || !continues(2) || !continues(3)) return 0;
  if (lead == 0xf0 && byte(1) < 0x90) return 0;   // overlong
  if (lead == 0xf4 && byte(1) >= 0x90) return 0;  // over U+10FFFF
  return 4;
}

std::size_t utf8_valid_prefix(std::string_view text) {
  const char *p = text.data(), *end = p + text.size();
  while (const std::size_t n = utf8_checked_length(p, end)) p += n;
  return static_cast<std::size_t>(p - text.data());
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
