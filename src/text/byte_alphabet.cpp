#include "text/byte_alphabet.h"

#include "io/utf8.h"

namespace lk {

ByteAlphabet::ByteAlphabet() {
  char32_t next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool visible = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    const char32_t c = visible ? static_cast<char32_t>(b) : next++;
    utf8_append(text[static_cast<std::size_t>(b)], c);
    byte[c] = static_cast<std::uint8_t>(b);
  }
}

std::string ByteAlphabet::decode(const std::string& token) const {
  std::string bytes;
  for (std::size_t i = 0; i < token.size();
       i += utf8_length(static_cast<unsigned char>(token[i]))) {
    auto it = byte.find(utf8_decode(token.data() + i));
    if (it == byte.end()) return token;
    bytes += static_cast<char>(it->second);
  }
  return bytes;
}

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

int fallback_byte(const std::string& token) {
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return -1;
  int value = 0;
  for (char c : {token[3], token[4]}) {
    const bool digit = c >= '0' && c <= '9', letter = c >= 'A' && c <= 'F';
    if (!digit && !letter) return -1;
    value = value * 16 + (digit ? c - '0' : c - 'A' + 10);
  }
  return value;
}

}  // namespace lk
