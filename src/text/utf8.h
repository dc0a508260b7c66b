// UTF-8: the few operations the tokenizer needs, on text already known to be valid or about to be
// checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lk {

// Bytes of the character that a valid lead byte starts.
inline std::size_t utf8_length(unsigned char lead) {
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

// The character at p of valid UTF-8.
inline char32_t utf8_decode(const char* p) {
  const auto* b = reinterpret_cast<const unsigned char*>(p);
  if (b[0] < 0x80) return b[0];
  if (b[0] < 0xE0) return static_cast<char32_t>((b[0] & 0x1F) << 6 | (b[1] & 0x3F));
  if (b[0] < 0xF0)
    return static_cast<char32_t>((b[0] & 0x0F) << 12 | (b[1] & 0x3F) << 6 | (b[2] & 0x3F));
  return static_cast<char32_t>((b[0] & 0x07) << 18 | (b[1] & 0x3F) << 12 | (b[2] & 0x3F) << 6 |
                               (b[3] & 0x3F));
}

inline void utf8_append(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

// Length of the longest prefix that is valid UTF-8 (no overlong forms, no surrogates, at most
// U+10FFFF): text.size() if all of it is.
std::size_t utf8_valid_prefix(std::string_view text);

// The text with U+FFFD for each byte that is no part of a character.
std::string utf8_repaired(std::string_view text);

}  // namespace lk
