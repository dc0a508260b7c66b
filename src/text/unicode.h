// Character classes and NFC, in the Unicode versions that the `tokenizers` package contains (see
// tools/make_unicode_tables.py): ids equal to its ids need its tables, not the newest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lk {

enum CharClass : std::uint8_t {
  kLetter = 1,      // \p{L}
  kNumber = 2,      // \p{N}
  kSpace = 4,       // White_Space, \s
  kNumeric = 8,     // Rust's char::is_numeric
  kWord = 16,       // \w
  kNfcActive = 32,  // may change under NFC, or make its neighbour change
};

// One byte of CharClass bits for each of the 0x110000 code points; built on first use.
const std::uint8_t* char_classes();

struct Normalized {
  std::string text;
  std::vector<std::size_t> origin;  // per byte of text: the source byte its character came from
};

// Whether NFC leaves valid UTF-8 as it is, by the quick check (false may be a false alarm).
bool surely_nfc(std::string_view text);
// Canonical composition of valid UTF-8. Source: Unicode Standard Annex 15 and chapter 3.11-3.12.
Normalized to_nfc(std::string_view text);

}  // namespace lk
