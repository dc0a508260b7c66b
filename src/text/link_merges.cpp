#include "text/link_merges.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "io/utf8.h"
#include "tensor/error.h"
#include "text/byte_alphabet.h"

namespace lk {

namespace {

// Every cut of a scored piece is looked up, so the length of a piece bounds the time to load a
// file. The longest pieces in use, runs of 31 spaces, have 93 bytes.
constexpr std::size_t kLongestPiece = 256;

// Whether a token can come out of merges: all can but those that a file's types keep out,
// and added tokens that the file's vocabulary has not.
bool merges_into(const TokenizerSpec& spec, std::size_t id) {
  return spec.piece.empty() || spec.piece[id];
}

// The id of a spelling that may take part in merges, -1 if there is none.
std::int32_t piece_id(const TokenizerSpec& spec, const TokenIds& ids, std::string_view spelling) {
  auto it = ids.find(spelling);
  return it != ids.end() && merges_into(spec, static_cast<std::size_t>(it->second)) ? it->second
                                                                                    : -1;
}

Alphabet byte_level(const TokenizerSpec& spec, const TokenIds& ids) {
  std::vector<std::int32_t> byte_ids(256, -1);
  bool any = false;
  for (std::size_t b = 0; b < 256; ++b) {
    byte_ids[b] = piece_id(spec, ids, byte_alphabet().text[b]);
    any = any || byte_ids[b] >= 0;
  }
  if (!any)
    throw InputError(spec.where + ": no token stands for a single byte: not byte-level BPE");
  return Alphabet::of_bytes(std::move(byte_ids));
}

Alphabet characters(const TokenizerSpec& spec, const TokenIds& ids) {
  std::unordered_map<char32_t, std::int32_t> single;
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    const std::string& token = spec.tokens[i];
    if (!token.empty() && utf8_length(static_cast<unsigned char>(token[0])) == token.size() &&
        merges_into(spec, i))
      single[utf8_decode(token.data())] = static_cast<std::int32_t>(i);
  }
  std::vector<std::int32_t> fallback;
  if (spec.byte_fallback) {
    fallback.assign(256, -1);
    constexpr char digits[] = "0123456789ABCDEF";
    for (std::size_t b = 0; b < 256; ++b) {
      const std::string name = std::string("<0x") + digits[b / 16] + digits[b % 16] + ">";
      auto it = ids.find(name);
      if (it == ids.end())
        throw InputError(spec.where + ": byte_fallback: no token is named " + name);
      fallback[b] = it->second;
    }
  }
  return Alphabet::of_characters(std::move(single), std::move(fallback));
}

std::vector<BytePairs::Merge> listed(const TokenizerSpec& spec, const TokenIds& ids) {
  std::vector<BytePairs::Merge> merges;
  merges.reserve(spec.merges.size());
  std::unordered_set<std::uint64_t> seen(2 * spec.merges.size());
  for (std::size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const std::string &left = spec.merges[rank].first, &right = spec.merges[rank].second;
    auto id = [&](const std::string& token) {
      const std::int32_t found = piece_id(spec, ids, token);
      if (found < 0 || token.empty())
        throw InputError(concat(spec.where, ": merge ", rank, " (\"", left, "\" \"", right,
                                "\") names \"", token, "\", which is not a token"));
      return found;
    };
    merges.push_back({id(left), id(right), id(left + right), static_cast<std::int32_t>(rank)});
    const auto key = static_cast<std::uint64_t>(merges.back().left) << 32 |
                     static_cast<std::uint32_t>(merges.back().right);
    if (!seen.insert(key).second)
      throw InputError(
          concat(spec.where, ": merge ", rank, " (\"", left, "\" \"", right, "\") appears twice"));
  }
  return merges;
}

// The rank of each token: 0 for the highest score, equal for equal scores.
std::vector<std::int32_t> ranks_of(const TokenizerSpec& spec) {
  for (std::size_t i = 0; i < spec.scores.size(); ++i)
    if (!std::isfinite(spec.scores[i]))
      throw InputError(concat(spec.where, ": the score of token ", i, " is not finite"));
  std::vector<float> distinct = spec.scores;
  std::sort(distinct.begin(), distinct.end(), std::greater<>());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  std::vector<std::int32_t> ranks;
  for (float score : spec.scores)
    ranks.push_back(static_cast<std::int32_t>(
        std::lower_bound(distinct.begin(), distinct.end(), score, std::greater<>()) -
        distinct.begin()));
  return ranks;
}

// The tokens that are found in any text before pieces merge, even inside plain spans: no piece that
// has one in it is ever made.
AddedTokenFinder found_first(const TokenizerSpec& spec) {
  AddedTokenFinder finder;
  for (const AddedToken& token : spec.added)
    if (!token.special && !token.content.empty() &&
        token.content.size() <= AddedTokenFinder::kMaxBytes)
      finder.add(token);
  return finder;
}

std::vector<BytePairs::Merge> scored(const TokenizerSpec& spec, const TokenIds& ids) {
  const std::vector<std::int32_t> ranks = ranks_of(spec);
  const AddedTokenFinder first = found_first(spec);
  std::vector<BytePairs::Merge> merges;
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    const std::string_view token = spec.tokens[i];
    if (!merges_into(spec, i) || first.inside(token)) continue;
    if (token.size() > kLongestPiece)
      throw InputError(concat(spec.where, ": token ", i, " has ", token.size(),
                              " bytes; pieces of at most ", kLongestPiece, " are read"));
    for_each_cut(token, [&](std::string_view left, std::string_view right) {
      // Sentencepiece merges spellings and we merge ids: both agree only if each character has one
      // id.
      const std::string_view last =
          right.substr(0, utf8_length(static_cast<unsigned char>(right[0])));
      if (piece_id(spec, ids, last) < 0)
        throw InputError(concat(spec.where, ": token ", i, " (\"", token, "\") has \"", last,
                                "\" in it, which is no token by itself"));
      const std::int32_t l = piece_id(spec, ids, left), r = piece_id(spec, ids, right);
      if (l >= 0 && r >= 0) merges.push_back({l, r, static_cast<std::int32_t>(i), ranks[i]});
    });
  }
  for (std::int32_t i : spec.unused)
    for_each_cut(spec.tokens[static_cast<std::size_t>(i)],
                 [&](std::string_view left, std::string_view right) {
                   if (piece_id(spec, ids, left) >= 0 && piece_id(spec, ids, right) >= 0)
                     throw InputError(concat(spec.where, ": token ", i, " (\"", left, right,
                                             "\") is of the unused type, yet pieces merge into "
                                             "it: not supported"));
                 });
  return merges;
}

}  // namespace

std::unique_ptr<BytePairs> link_merges(const TokenizerSpec& spec, const TokenIds& ids) {
  Alphabet alphabet = spec.byte_level ? byte_level(spec, ids) : characters(spec, ids);
  return std::make_unique<BytePairs>(std::move(alphabet),
                                     spec.scores.empty() ? listed(spec, ids) : scored(spec, ids));
}

}  // namespace lk
