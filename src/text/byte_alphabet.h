// Byte-level BPE writes each byte as a visible character: 33-126, 161-172 and 174-255 as
// themselves, the other 68 as U+0100, U+0101, ... in order. Source: GPT-2's encoder (Radford et al.
// 2019).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>

namespace lk {

struct ByteAlphabet {
  std::array<std::string, 256> text;  // by byte
  std::unordered_map<char32_t, std::uint8_t> byte;
  ByteAlphabet();
  // The bytes a vocabulary string (valid UTF-8) stands for; a string with any other character
  // stands for itself.
  std::string decode(const std::string& token) const;
};

const ByteAlphabet& byte_alphabet();

// The byte that a token of the form "<0x0A>" stands for, -1 if it has another form.
int fallback_byte(const std::string& token);

}  // namespace lk
