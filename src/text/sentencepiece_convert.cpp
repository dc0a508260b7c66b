#include "text/sentencepiece_convert.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "tensor/error.h"
#include "text/added_tokens.h"
#include "text/gguf_token_type.h"
#include "text/link_merges.h"
#include "text/tokenizer.h"
#include "text/tokenizer_json_parts.h"

namespace lk {

namespace {

constexpr std::string_view kMark = kSpaceMark;

void replace_marks(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

// The ids of the tokens that merges may make.
TokenIds piece_ids(const std::vector<std::string>& tokens, const std::vector<std::int32_t>& types) {
  TokenIds ids;
  for (std::size_t i = 0; i < tokens.size(); ++i)
    if (types[i] == kNormal) ids.emplace(tokens[i], static_cast<std::int32_t>(i));
  return ids;
}

// The number of marks that `text` consists of, 0 if it has anything else in it.
std::size_t run_length(std::string_view text) {
  for (std::size_t at = 0; at < text.size(); at += kMark.size())
    if (text.substr(at, kMark.size()) != kMark) return 0;
  return text.size() / kMark.size();
}

const Json& merges_of(const Json& file) { return file.at("model").at("merges"); }

// Calls visit(left id, right id) for every way to make a token of two others.
template <class Visit>
void for_each_merge(const std::string& token, const TokenIds& ids, Visit&& visit) {
  for_each_cut(token, [&](std::string_view left, std::string_view right) {
    const auto l = ids.find(left), r = ids.find(right);
    if (l != ids.end() && r != ids.end()) visit(l->second, r->second);
  });
}

Json replace_spaces() {
  return {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpaceMark}};
}
Json normalizer_json(bool space_prefix) {
  if (!space_prefix) return replace_spaces();
  return {{"type", "Sequence"},
          {"normalizers", {{{"type", "Prepend"}, {"prepend", kSpaceMark}}, replace_spaces()}}};
}
Json decoder_json(bool space_prefix) {
  Json parts = {{{"type", "Replace"}, {"pattern", {{"String", kSpaceMark}}}, {"content", " "}},
                {{"type", "ByteFallback"}},
                {{"type", "Fuse"}}};
  if (space_prefix)
    parts.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return {{"type", "Sequence"}, {"decoders", parts}};
}

// Whether the normalizer puts a space before each text.
bool has_space_prefix(const Json& file) {
  return file.contains("normalizer") && file.at("normalizer") == normalizer_json(true);
}

// Whether merges make `runs` (ids by their number of marks) as if each were found in text whole:
// see Note [Runs of spaces].
bool runs_are_whole(const Json& file, const std::string& path, const Tokenizer& tokenizer,
                    std::map<std::size_t, std::int32_t> runs) {
  if (runs.empty()) return true;
  const std::size_t longest = runs.rbegin()->first;
  runs.emplace(1, tokenizer.id_of(kMark));
  bool others_came = false;  // merges that compete for a mark
  for (std::size_t rank = 0; rank < merges_of(file).size(); ++rank) {
    const auto [left, right] = tokenizer_json::read_merge(merges_of(file)[rank], rank, path);
    const std::size_t l = run_length(left), r = run_length(right);
    if (l > 0 && r > 0) {
      if (others_came || !runs.count(l + r)) return false;
    } else {
      if (l > 1 || r > 1) return false;
      others_came = others_came || left.ends_with(kMark) || right.starts_with(kMark);
    }
  }
  for (std::size_t n = 1; n <= 3 * longest; ++n) {
    std::vector<std::int32_t> want;
    for (std::size_t left = n; left > 0;) {
      const auto run = std::prev(runs.upper_bound(left));
      want.push_back(run->second);
      left -= run->first;
    }
    if (tokenizer.encode(std::string(n, ' ')) != want) return false;
  }
  return true;
}

// Finds in a spelling the tokens that are found in text whole, before any merge.
AddedTokenFinder whole_tokens(const std::vector<std::string>& tokens,
                              const std::vector<std::int32_t>& types) {
  AddedTokenFinder finder;
  for (std::size_t i = 0; i < tokens.size(); ++i)
    if (types[i] == kControl || types[i] == kUserDefined || types[i] == kUnknown)
      finder.add({.content = with_marks(tokens[i]), .id = static_cast<std::int32_t>(i)});
  return finder;
}

// Refuses two tokens of one score whose merges can compete for a piece: scores take the leftmost,
// a list of merges the first in the list. Takes the merges in the order in which they are listed.
class TieChecker {
 public:
  TieChecker(const std::vector<std::string>& tokens, const std::string& where)
      : tokens_(tokens), where_(where) {}
  void add(std::int32_t left, std::int32_t right, std::size_t token, float score) {
    if (score != score_) begins_.clear(), score_ = score;
    for (const std::size_t other : begins_[right])
      if (other != token)
        throw InputError(concat(where_, ": tokenizer.ggml.scores: tokens ", other, " (\"",
                                tokens_[other], "\") and ", token, " (\"", tokens_[token],
                                "\") have the same score: the leftmost merges first, which "
                                "tokenizer.json can't say"));
    std::vector<std::size_t>& same = begins_[left];
    if (same.empty() || same.back() != token) same.push_back(token);
  }

 private:
  const std::vector<std::string>& tokens_;
  const std::string& where_;
  float score_ = 0;
  std::map<std::int32_t, std::vector<std::size_t>> begins_;  // tokens by the left part of a merge
};

}  // namespace

std::string with_marks(std::string token) {
  replace_marks(token, " ", kMark);
  return token;
}

std::string with_spaces(std::string token) {
  replace_marks(token, kMark, " ");
  return token;
}

void mark_added_pieces(const Json& file, const std::string& path, const Tokenizer& tokenizer,
                       std::vector<std::string>& tokens, std::vector<std::int32_t>& types) {
  const bool prefix = has_space_prefix(file);
  const Json& vocab = file.at("model").at("vocab");
  std::map<std::size_t, std::int32_t> runs;
  for (const Json& entry : file.at("added_tokens")) {
    const auto id = entry.at("id").get<std::size_t>();
    if (id >= tokens.size()) continue;
    const auto content = entry.at("content").get<std::string>();
    const bool special = json_bool_or(entry, "special", false, path),
               normalized = json_bool_or(entry, "normalized", !special, path);
    if (normalized && prefix)
      throw InputError(concat(path, ": added_tokens: \"", content,
                              "\" is normalized, and a space goes before each text: GGUF has no "
                              "words for both"));
    if (with_marks(content).size() > AddedTokenFinder::kMaxBytes)
      throw InputError(concat(path, ": added_tokens: token ", id, " has more than ",
                              AddedTokenFinder::kMaxBytes, " bytes once spaces are marked"));
    tokens[id] = normalized ? with_spaces(content) : content;
    types[id] = special ? kControl : kUserDefined;
    if (special || normalized || content.find(kMark) == std::string::npos) continue;
    types[id] = kNormal;
    if (run_length(content) > 1 && vocab.contains(content))
      runs[run_length(content)] = static_cast<std::int32_t>(id);
  }
  if (prefix || !runs_are_whole(file, path, tokenizer, runs)) return;
  for (const auto& [n, id] : runs) {
    tokens[static_cast<std::size_t>(id)] = std::string(n, ' ');
    types[static_cast<std::size_t>(id)] = kUserDefined;
  }
}

PieceScores piece_scores(const Json& file, const std::string& path,
                         const std::vector<std::string>& tokens, std::vector<std::int32_t>& types) {
  auto refuse = [&](const std::string& what) {
    throw InputError(concat(path, ": ", what, ", for which GGUF has no words"));
  };
  PieceScores out;
  const Json null, &model = file.at("model");
  const Json& normalizer = file.contains("normalizer") ? file.at("normalizer") : null;
  out.space_prefix = has_space_prefix(file);
  if (!out.space_prefix) {
    Json alone = normalizer;  // a list of one means the same as its item
    if (alone.is_object() && alone.contains("normalizers") && alone.at("normalizers").size() == 1)
      alone = alone.at("normalizers")[0];
    if (alone != normalizer_json(false))
      refuse("normalizer: not a Replace of spaces alone or after a Prepend");
  }
  if (file.contains("pre_tokenizer") && file.at("pre_tokenizer").is_object() &&
      json_string_or(file.at("pre_tokenizer"), "type", "", path) != "Split")
    refuse("pre_tokenizer: a Metaspace");
  if (!file.contains("decoder") || file.at("decoder") != decoder_json(out.space_prefix))
    refuse("decoder: another than its normalizer asks for");
  for (const char* key : {"byte_fallback", "fuse_unk"})
    if (!json_bool_or(model, key, false, path)) refuse(concat("model: ", key, " is false"));
  if (json_bool_or(model, "ignore_merges", false, path)) refuse("model: ignore_merges");

  // A token's score is the place of its first merge. Its merges must lie together, and no way to
  // make it may be missing.
  TokenIds ids = piece_ids(tokens, types);
  const AddedTokenFinder whole = whole_tokens(tokens, types);
  out.scores.assign(tokens.size(), 0);
  std::vector<bool> made(tokens.size());
  std::set<std::pair<std::int32_t, std::int32_t>> listed;
  std::int32_t last = -1, place = 0;
  for (std::size_t rank = 0; rank < merges_of(file).size(); ++rank) {
    const auto [left, right] = tokenizer_json::read_merge(merges_of(file)[rank], rank, path);
    const std::string spelling = left + right;
    if (whole.inside(spelling)) continue;  // text is cut there before any merge
    const auto l = ids.find(left), r = ids.find(right), both = ids.find(spelling);
    if (l == ids.end() || r == ids.end() || both == ids.end())
      refuse(concat("model: merges: \"", left, "\" \"", right,
                    "\" is of byte tokens or others that no merge makes"));
    listed.emplace(l->second, r->second);
    const std::int32_t token = both->second;
    if (token == last) continue;
    if (made[static_cast<std::size_t>(token)])
      refuse(concat("model: merges: \"", spelling, "\" is made at two places in the order"));
    made[static_cast<std::size_t>(token)] = true;
    out.scores[static_cast<std::size_t>(token)] = static_cast<float>(-place++);
    last = token;
  }
  std::vector<bool> check(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] != kNormal || whole.inside(tokens[i])) continue;
    check[i] = true;
    if (made[i] || utf8_length(static_cast<unsigned char>(tokens[i][0])) == tokens[i].size())
      continue;
    types[i] = kUnused;
    ids.erase(tokens[i]);
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (check[i])
      for_each_merge(tokens[i], ids, [&](std::int32_t l, std::int32_t r) {
        if (!listed.count({l, r}))
          refuse(concat("model: merges: \"", tokens[static_cast<std::size_t>(l)], "\" \"",
                        tokens[static_cast<std::size_t>(r)],
                        "\" is no merge although it spells a token"));
      });
    if (types[i] == kNormal && !made[i]) out.scores[i] = static_cast<float>(-place++);
  }
  if (place >= 1 << 24) refuse("more tokens than scores tell apart");
  return out;
}

PieceJson piece_json(const std::vector<std::string>& tokens, const PieceScores& pieces,
                     const std::vector<std::int32_t>& types, const Json& unknown,
                     const std::string& where) {
  const TokenIds ids = piece_ids(tokens, types);
  std::vector<std::size_t> order(tokens.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return pieces.scores[a] > pieces.scores[b];
  });
  Json merges = Json::array();
  TieChecker ties(tokens, where);
  for (std::size_t i : order) {
    if (types[i] != kNormal) continue;
    for_each_merge(tokens[i], ids, [&](std::int32_t l, std::int32_t r) {
      ties.add(l, r, i, pieces.scores[i]);
      merges.push_back({tokens[static_cast<std::size_t>(l)], tokens[static_cast<std::size_t>(r)]});
    });
  }
  return {normalizer_json(pieces.space_prefix),
          decoder_json(pieces.space_prefix),
          {{"type", "BPE"},
           {"dropout", nullptr},
           {"unk_token", unknown},
           {"continuing_subword_prefix", nullptr},
           {"end_of_word_suffix", nullptr},
           {"fuse_unk", true},
           {"byte_fallback", true},
           {"ignore_merges", false},
           {"merges", std::move(merges)}}};
}

}  // namespace lk
