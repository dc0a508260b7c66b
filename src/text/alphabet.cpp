#include "text/alphabet.h"

#include "io/utf8.h"
#include "tensor/error.h"

namespace lk {

Alphabet Alphabet::of_bytes(std::vector<std::int32_t> byte_ids) {
  check(byte_ids.size() == 256, "Alphabet: byte_ids must have 256 entries");
  Alphabet a;
  a.byte_ids_ = std::move(byte_ids);
  return a;
}

Alphabet Alphabet::of_characters(std::unordered_map<char32_t, std::int32_t> ids,
                                 std::vector<std::int32_t> fallback) {
  check(fallback.empty() || fallback.size() == 256, "Alphabet: fallback must have 256 entries");
  Alphabet a;
  a.by_byte_ = false;
  a.byte_ids_ = std::move(fallback);
  a.low_.assign(0x80, -1);
  for (const auto& [c, id] : ids)
    if (c < 0x80) a.low_[c] = id;
  a.ids_ = std::move(ids);
  return a;
}

std::size_t Alphabet::split(std::string_view piece, std::int32_t unknown, bool fuse,
                            std::vector<Symbol>& symbols) const {
  symbols.clear();
  bool in_unknown = false;
  std::size_t lost = 0;
  for (std::size_t i = 0, next = 0; i < piece.size(); i = next) {
    const auto byte = static_cast<unsigned char>(piece[i]);
    const auto begin = static_cast<std::uint32_t>(i);
    std::int32_t id = -1;
    if (by_byte_) {
      next = i + 1;
      id = byte_ids_[byte];
    } else {
      next = i + utf8_length(byte);
      if (byte < 0x80) {
        id = low_[byte];
      } else if (auto it = ids_.find(utf8_decode(piece.data() + i)); it != ids_.end()) {
        id = it->second;
      }
      if (id < 0 && !byte_ids_.empty()) {
        for (std::size_t at = i; at < next; ++at)
          symbols.push_back(
              {byte_ids_[static_cast<unsigned char>(piece[at])], static_cast<std::uint32_t>(at)});
        in_unknown = false;
        continue;
      }
    }
    if (id >= 0) {
      symbols.push_back({id, begin});
    } else if (unknown >= 0 && !(fuse && in_unknown)) {
      symbols.push_back({unknown, begin});
    } else if (unknown < 0) {
      lost += next - i;
    }
    in_unknown = id < 0;
  }
  return lost;
}

}  // namespace lk
