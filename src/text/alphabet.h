// Alphabet: the tokens of a piece of text before any merge, one for each byte or each character.
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
  // A byte-level alphabet: `byte_ids` has the id of each of the 256 bytes, -1 if the vocabulary has
  // none.
  static Alphabet of_bytes(std::vector<std::int32_t> byte_ids);
  // An alphabet of characters. A character without an id becomes the ids that `fallback` has for
  // its bytes (256 of them), or is unknown if `fallback` is empty.
  static Alphabet of_characters(std::unordered_map<char32_t, std::int32_t> ids,
                                std::vector<std::int32_t> fallback);

  // Replaces `symbols` by the symbols of `piece`, valid UTF-8. What has no id becomes `unknown`
  // (one for a whole run if `fuse`), or vanishes if `unknown` is -1, as in the reference. Returns
  // how many bytes vanished.
  std::size_t split(std::string_view piece, std::int32_t unknown, bool fuse,
                    std::vector<Symbol>& symbols) const;

 private:
  bool by_byte_ = true;
  std::vector<std::int32_t> byte_ids_;  // ids by byte; an alphabet of characters: the fallback
  std::vector<std::int32_t> low_;       // ids of characters below U+0080, -1 if none
  std::unordered_map<char32_t, std::int32_t> ids_;
};

}  // namespace lk
