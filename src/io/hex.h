// Hexadecimal digits.
#pragma once

#include <cstdint>
#include <string>

namespace lk {

// Appends a byte as two lower-case hex digits.
inline void append_hex(std::string& out, std::uint8_t byte) {
  constexpr char kDigits[] = "0123456789abcdef";
  out += kDigits[byte >> 4];
  out += kDigits[byte & 15];
}

}  // namespace lk
