#include "text/sentencepiece_convert.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "tensor/error.h"
#include "text/link_merges.h"
#include "text/tokenizer_json_parts.h"

namespace lk {

namespace {

TokenIds mergeable_ids(const std::vector<std::string>& tokens, const std::vector<bool>& mergeable) {
  TokenIds ids;
  for (std::size_t i = 0; i < tokens.size(); ++i)
    if (mergeable[i]) ids.emplace(tokens[i], static_cast<std::int32_t>(i));
  return ids;
}

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

}  // namespace

PieceScores piece_scores(const Json& file, const std::string& path,
                         const std::vector<std::string>& tokens,
                         const std::vector<bool>& mergeable) {
  auto refuse = [&](const std::string& what) {
    throw InputError(concat(path, ": ", what, ", for which GGUF has no words"));
  };
  PieceScores out;
  const Json null, &model = file.at("model");
  const Json& normalizer = file.contains("normalizer") ? file.at("normalizer") : null;
  if (normalizer != normalizer_json(true)) {
    out.space_prefix = false;
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
  const TokenIds ids = mergeable_ids(tokens, mergeable);
  out.scores.assign(tokens.size(), 0);
  std::vector<bool> made(tokens.size());
  std::set<std::pair<std::int32_t, std::int32_t>> listed;
  std::int32_t last = -1, place = 0;
  const Json& merges = model.at("merges");
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right] = tokenizer_json::read_merge(merges[rank], rank, path);
    const std::string spelling = left + right;
    const auto l = ids.find(left), r = ids.find(right), both = ids.find(spelling);
    if (l == ids.end() || r == ids.end() || both == ids.end())
      refuse(concat("model: merges: \"", left, "\" \"", right, "\" is of special tokens"));
    listed.emplace(l->second, r->second);
    const std::int32_t token = both->second;
    if (token == last) continue;
    if (made[static_cast<std::size_t>(token)])
      refuse(concat("model: merges: \"", spelling, "\" is made at two places in the order"));
    made[static_cast<std::size_t>(token)] = true;
    out.scores[static_cast<std::size_t>(token)] = static_cast<float>(-place++);
    last = token;
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (!mergeable[i]) continue;
    for_each_merge(tokens[i], ids, [&](std::int32_t l, std::int32_t r) {
      if (!listed.count({l, r}))
        refuse(concat("model: merges: \"", tokens[static_cast<std::size_t>(l)], "\" \"",
                      tokens[static_cast<std::size_t>(r)],
                      "\" is no merge although it spells a token"));
    });
    if (!made[i]) out.scores[i] = static_cast<float>(-place++);  // no merge makes it
  }
  if (place >= 1 << 24) refuse("more tokens than scores tell apart");
  return out;
}

PieceJson piece_json(const std::vector<std::string>& tokens, const PieceScores& pieces,
                     const std::vector<bool>& mergeable, const std::string& unknown) {
  const TokenIds ids = mergeable_ids(tokens, mergeable);
  std::vector<std::size_t> order(tokens.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return pieces.scores[a] > pieces.scores[b];
  });
  Json merges = Json::array();
  for (std::size_t i : order) {
    if (!mergeable[i]) continue;
    for_each_merge(tokens[i], ids, [&](std::int32_t l, std::int32_t r) {
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
