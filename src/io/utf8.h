// UTF-8 (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF): checking text, and walking
// through text that is known to be valid.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lk {

// The number of bytes of the character that a valid lead byte starts.
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

// Appends the character c.
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

// The number of bytes of the valid character at p, 0 if there is none (also for p == end).
std::size_t utf8_checked_length(const char* p, const char* end);
// The length of the longest prefix that is valid UTF-8: text.size() if all of it is.
std::size_t utf8_valid_prefix(std::string_view text);
// Whether all of `text` is valid UTF-8.
inline bool is_utf8(std::string_view text) { return utf8_valid_prefix(text) == text.size(); }

// The text with A to Z in lower case, and all else as it is.
inline std::string ascii_lower_case(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  return text;
}

// The text with U+FFFD for each byte that is no part of a character.
std::string utf8_repaired(std::string_view text);

}  // namespace lk
