// A small tokenizer made as Gemma's is published, for tests of conversions and of the programs.
#pragma once

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "io/json.h"
#include "text/tokenizer_builder.h"

namespace lk::test {

inline const std::string kMark = kSpaceMark;

inline std::string repeat(const std::string& unit, std::size_t n) {
  std::string text;
  for (std::size_t i = 0; i < n; ++i) text += unit;
  return text;
}

inline std::string byte_name(int b) {
  constexpr char digits[] = "0123456789ABCDEF";
  return std::string("<0x") + digits[b / 16] + digits[b % 16] + ">";
}

inline Json added_token(std::size_t id, const std::string& content, bool special, bool normalized) {
  return {{"id", id},        {"content", content},       {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", normalized}, {"special", special}};
}

// A small tokenizer.json made as Gemma's is published. Its added tokens of line breaks and of marks
// score highest, so their merges come first, sorted by the lengths of their parts, then those of
// the ordinary pieces, each piece's ways together.
struct GemmaLike {
  std::vector<std::string> special = {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"};
  std::vector<std::string> whole = {"\n", "\n\n", "\n\n\n", "<b>", "</b>", "hello", "\t", "\t\t"};
  std::size_t longest_run = 4;  // of marks
  std::vector<std::string> pieces = {
      kMark,        "a",   "b",   "h",  "e",         "l",        "o",
      "<",          ">",   "/",   "he", "lo",        "ll",       "llo",
      kMark + "he", "hel", "a\n", "ab", "bab",       "hello</",  kMark + "a",
      "aa",         "aaa", "</",  "b>", "a" + kMark, "\xc3\xa9", kMark + kMark + "x"};
  bool prefix = false, normalized = false;

  Json file() const {
    std::vector<std::string> tokens = special;
    for (int b = 0; b < 256; ++b) tokens.push_back(byte_name(b));
    Json added = Json::array();
    for (std::size_t i = 0; i < special.size(); ++i)
      added.push_back(added_token(i, special[i], true, false));
    std::vector<std::string> found = whole;
    for (std::size_t n = 2; n <= longest_run; ++n) found.push_back(repeat(kMark, n));
    for (const std::string& token : found) {
      added.push_back(added_token(tokens.size(), token, false, normalized));
      tokens.push_back(token);
    }
    const std::size_t n_found = tokens.size();
    tokens.insert(tokens.end(), pieces.begin(), pieces.end());
    Json vocab = Json::object();
    for (std::size_t i = 0; i < tokens.size(); ++i)
      if (!vocab.contains(tokens[i])) vocab[tokens[i]] = vocab.size();
    struct Merge {
      double score;
      std::string left, right;
    };
    std::vector<Merge> merges;
    for (std::size_t i = special.size() + 256; i < tokens.size(); ++i)
      for (std::size_t cut = 1; cut < tokens[i].size(); ++cut) {
        const std::string left = tokens[i].substr(0, cut), right = tokens[i].substr(cut);
        if (vocab.contains(left) && vocab.contains(right))
          merges.push_back({i < n_found ? 0 : -static_cast<double>(i), left, right});
      }
    std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
      return std::tuple(a.score, a.left.size(), a.right.size()) >
             std::tuple(b.score, b.left.size(), b.right.size());
    });
    Json listed = Json::array();
    for (const Merge& m : merges) listed.push_back({m.left, m.right});
    const Json replace = {
        {"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpaceMark}};
    Json decoders = {{{"type", "Replace"}, {"pattern", {{"String", kSpaceMark}}}, {"content", " "}},
                     {{"type", "ByteFallback"}},
                     {{"type", "Fuse"}}};
    if (prefix)
      decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    return {
        {"version", "1.0"},
        {"added_tokens", added},
        {"normalizer",
         prefix ? Json{{"type", "Sequence"},
                       {"normalizers", {{{"type", "Prepend"}, {"prepend", kSpaceMark}}, replace}}}
                : replace},
        {"pre_tokenizer", nullptr},
        {"decoder", {{"type", "Sequence"}, {"decoders", decoders}}},
        {"post_processor",
         {{"type", "TemplateProcessing"},
          {"single",
           {{{"SpecialToken", {{"id", "<bos>"}, {"type_id", 0}}}},
            {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
          {"pair", Json::array()},
          {"special_tokens", {{"<bos>", {{"id", "<bos>"}, {"ids", {2}}, {"tokens", {"<bos>"}}}}}}}},
        {"model",
         {{"type", "BPE"},
          {"unk_token", "<unk>"},
          {"fuse_unk", true},
          {"byte_fallback", true},
          {"vocab", vocab},
          {"merges", listed}}}};
  }
};

// Name and content of the files of a folder with this tokenizer.
inline std::vector<std::pair<std::string, std::string>> gemma_files(const Json& tokenizer) {
  return {{"tokenizer.json", tokenizer.dump()},
          {"tokenizer_config.json",
           R"({"bos_token":"<bos>","eos_token":"<eos>","unk_token":"<unk>","pad_token":"<pad>",)"
           R"("add_bos_token":true})"},
          {"generation_config.json", R"({"eos_token_id":[1,4]})"}};
}

}  // namespace lk::test
