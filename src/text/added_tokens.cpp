#include "text/added_tokens.h"

#include <algorithm>

#include "io/utf8.h"
#include "tensor/error.h"
#include "text/unicode.h"

namespace lk {

namespace {

// Whether [begin, end) shares a byte with one of the sorted spans.
bool overlaps(ByteSpans spans, std::size_t begin, std::size_t end) {
  auto it = std::partition_point(spans.begin(), spans.end(),
                                 [&](const auto& span) { return span.second <= begin; });
  return it != spans.end() && it->first < end && it->first < it->second;
}

std::size_t previous(std::string_view s, std::size_t i) {
  do --i;
  while ((static_cast<unsigned char>(s[i]) & 0xC0) == 0x80);
  return i;
}

bool is(std::string_view s, std::size_t i, CharClass bit) {
  return char_classes()[utf8_decode(s.data() + i)] & bit;
}

}  // namespace

bool AddedTokenFinder::add(const AddedToken& token) {
  check(!token.content.empty() && token.content.size() <= kMaxBytes, "added token: bad length");
  std::size_t node = 0;
  for (char ch : token.content) {
    const auto byte = static_cast<unsigned char>(ch);
    auto& next = nodes_[node].next;
    auto it = std::find_if(next.begin(), next.end(), [&](auto& e) { return e.first == byte; });
    if (it != next.end()) {
      node = static_cast<std::size_t>(it->second);
    } else {
      next.emplace_back(byte, static_cast<std::int32_t>(nodes_.size()));
      node = nodes_.size();
      nodes_.emplace_back();
    }
  }
  starts_[static_cast<unsigned char>(token.content[0])] = true;
  if (nodes_[node].token >= 0) return false;
  nodes_[node].token = static_cast<std::int32_t>(tokens_.size());
  tokens_.push_back(token);
  return true;
}

AddedTokenFinder::Match AddedTokenFinder::match(std::string_view s, std::size_t at,
                                                ByteSpans plain) const {
  while (at < s.size() && !starts_[static_cast<unsigned char>(s[at])]) ++at;
  Match best{nullptr, at, at + 1};
  std::size_t node = 0;
  for (std::size_t i = at; i < s.size(); ++i) {
    const auto& next = nodes_[node].next;
    auto it = std::find_if(next.begin(), next.end(), [&](const auto& e) {
      return e.first == static_cast<unsigned char>(s[i]);
    });
    if (it == next.end()) break;
    node = static_cast<std::size_t>(it->second);
    if (nodes_[node].token < 0) continue;
    const AddedToken& token = tokens_[static_cast<std::size_t>(nodes_[node].token)];
    if (token.special && overlaps(plain, at, i + 1)) continue;
    best = {&token, at, i + 1};
  }
  return best;
}

bool AddedTokenFinder::touches_word(std::string_view s, std::size_t begin, std::size_t end) {
  return (begin > 0 && is(s, previous(s, begin), kWord)) || (end < s.size() && is(s, end, kWord));
}

std::size_t AddedTokenFinder::strip_before(std::string_view s, std::size_t begin,
                                           std::size_t floor) {
  while (begin > floor && is(s, previous(s, begin), kSpace)) begin = previous(s, begin);
  return begin;
}

std::size_t AddedTokenFinder::strip_after(std::string_view s, std::size_t end) {
  while (end < s.size() && is(s, end, kSpace))
    end += utf8_length(static_cast<unsigned char>(s[end]));
  return end;
}

}  // namespace lk
