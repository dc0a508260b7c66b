// What a piece of text is before any merge: one token a byte, or one a character.
#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lk {

// A token of a piece: its id and the offset of its first byte.
struct Symbol {
  std::int32_t id;
  std::uint32_t begin;
};

class Alphabet {
 public:
  // Byte-level: the id of each of the 256 bytes, -1 if the vocabulary has none.
  static Alphabet of_bytes(std::vector<std::int32_t> byte_ids);
  // Of characters; one without an id becomes its bytes' ids. `fallback`: 256 of these, or none at
  // all: then it is unknown.
  static Alphabet of_characters(std::unordered_map<char32_t, std::int32_t> ids,
                                std::vector<std::int32_t> fallback);

  // Replaces `symbols` by the symbols of `piece`, valid UTF-8. What has no id becomes `unknown`
  // (one for a run of them if `fuse`), or vanishes if that is -1, as in the reference; returns how
  // many bytes vanished.
  std::size_t split(std::string_view piece, std::int32_t unknown, bool fuse,
                    std::vector<Symbol>& symbols) const;

 private:
  bool by_byte_ = true;
  std::vector<std::int32_t> byte_ids_;  // of bytes; of characters: the fallback
  std::vector<std::int32_t> low_;       // of characters below U+0080, -1 if none
  std::unordered_map<char32_t, std::int32_t> ids_;
};

}  // namespace lk
