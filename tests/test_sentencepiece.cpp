// Would catch: sentencepiece-style ids that differ from those of `tokenizers` (tokenizer.json) or
// of sentencepiece itself (GGUF), a space too many at either end, bytes lost on the way back, time
// that grows with the square of a text.
#include "gguf_text.h"
#include "harness.h"
#include "hostile.h"
#include "io/sha256.h"
#include "tensor/error.h"
#include "tokenizer_fixture.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kFolder = kData + "sentencepiece/";

const Json& golden() {
  static const Json ids = read_json(kFolder + "ids.json");
  return ids;
}

std::string digest(const Ids& ids) {
  Sha256 sha;
  sha.update(ids.data(), ids.size() * sizeof(ids[0]));
  return sha.hex();
}

std::unique_ptr<Tokenizer> open_form(const Json& form) {
  Json file = read_json(kFolder + "tokenizer.json");
  file.update(form);
  Scratch folder;
  folder.write("tokenizer.json", file.dump());
  return Tokenizer::from_folder(folder.path.string());
}

void check_golden(const Tokenizer& tokenizer, const Json& want, const std::string& name) {
  static const auto cases =
      read_json(kData + "ids.json").at("cases").get<std::vector<std::string>>();
  REQUIRE(want.at("cases").size() == cases.size());
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Ids got = tokenizer.encode(cases[i]);
    std::string shown;
    for (std::int32_t id : got) shown += tokenizer.token_text(id) + "|";
    CHECK_MESSAGE(digest(got).substr(0, 8) == want.at("cases").at(i).get<std::string>(), name,
                  " case ", i, " \"", cases[i], "\": ", shown);
  }
  const Ids got = tokenizer.encode(long_text());
  CHECK_MESSAGE(got.size() == want.at("count").get<std::size_t>(), name);
  CHECK_MESSAGE(digest(got) == want.at("sha256").get<std::string>(), name);
  for (const Json& pair : want.at("decoded")) {
    const auto text = pair.at(0).get<std::string>();
    CHECK_MESSAGE(tokenizer.decode(tokenizer.encode(text)) == pair.at(1).get<std::string>(), name,
                  " \"", text, "\"");
  }
}

std::unique_ptr<Tokenizer> open_model(const std::string& name) {
  return Tokenizer::from_gguf(GgufFile(kFolder + name + ".gguf"));
}

// A vocabulary of single characters, bytes and tokens that a test adds.
struct Vocabulary {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<float> scores = {0, 0, 0};
  std::vector<std::int32_t> types = {2, 3, 3};
  Vocabulary() {
    constexpr char digits[] = "0123456789ABCDEF";
    for (int b = 0; b < 256; ++b)
      add(std::string("<0x") + digits[b / 16] + digits[b % 16] + ">", 0, 6);
    for (const char* c : {"a", "b", "c", kSpaceMark}) add(c, -100);
  }
  Vocabulary& add(const std::string& token, float score, std::int32_t type = 1) {
    tokens.push_back(token), scores.push_back(score), types.push_back(type);
    return *this;
  }
  GgufText file() const {
    return GgufText()
        .text("ggml.model", "llama")
        .texts("ggml.tokens", tokens)
        .reals("ggml.scores", scores)
        .numbers("ggml.token_type", types);
  }
};

std::string spell(const Tokenizer& tokenizer, const std::string& text) {
  std::string out;
  for (std::int32_t id : tokenizer.encode(text)) out += tokenizer.token_text(id) + "|";
  return out;
}

}  // namespace

TEST_CASE("ids of every form of tokenizer.json equal the tokenizers package's on a megabyte") {
  for (const auto& [name, want] : golden().at("forms").items()) {
    auto tokenizer = open_form(want.at("form"));
    CHECK(tokenizer->pre_tokenizer() == "whole");
    check_golden(*tokenizer, want, name);
  }
}

TEST_CASE("ids from GGUF scores equal sentencepiece's on a megabyte") {
  for (const auto& [name, want] : golden().at("models").items()) {
    auto tokenizer = open_model(name);
    CHECK(tokenizer->bos() == 1);
    CHECK(tokenizer->eos() == 2);
    CHECK(tokenizer->before_text() == Ids{tokenizer->bos()});
    check_golden(*tokenizer, want, name);
  }
}

TEST_CASE("decode undoes encode, whatever the characters") {
  for (const char* name : {"llama", "gemma"}) {
    auto tokenizer = open_model(name);
    std::string text = long_text();
    // U+2581 comes back as the space it stands for.
    for (std::size_t at; (at = text.find(kSpaceMark)) != std::string::npos;)
      text.replace(at, 3, " ");
    CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  }
}

TEST_CASE("control tokens are found in text but not in plain spans, and take a new start") {
  auto tokenizer = open_model("llama");
  const Ids hello = tokenizer->encode("Hello");
  Ids want = {1};
  want.insert(want.end(), hello.begin(), hello.end());
  want.push_back(2);
  CHECK(tokenizer->encode("<s>Hello</s>") == want);
  CHECK(tokenizer->decode(want) == "Hello");
  CHECK(tokenizer->decode(want, false) == "<s> Hello</s>");
  const std::vector<std::pair<std::size_t, std::size_t>> all = {{0, 12}};
  const Ids plain = tokenizer->encode("<s>Hello</s>", all);
  CHECK(std::count(plain.begin(), plain.end(), 2) == 0);
  CHECK(tokenizer->decode(plain) == "<s>Hello</s>");
}

TEST_CASE("offsets point into the text as it was, also of bytes and of the space put before it") {
  auto tokenizer = open_model("llama");
  const std::string text = "a \U0001f99c b";
  const auto e = tokenizer->encode_with_offsets(text);
  REQUIRE(e.begins.size() == e.ids.size());
  CHECK(e.begins.front() == 0);
  CHECK(e.lost_bytes == 0);
  std::string joined;
  for (std::size_t i = 0; i < e.ids.size(); ++i) {
    const std::string token = tokenizer->token_text(e.ids[i]);
    if (i > 0) CHECK(text.compare(e.begins[i], token.size(), token) == 0);
    joined += token;
  }
  CHECK(joined == " " + text);
}

TEST_CASE("pieces merge by score: the highest first, of equals the leftmost, any cut of a piece") {
  Vocabulary v;
  v.add("ab", -1).add("bc", -2).add("abc", -3).add("aa", -5).add("aaa", -5);
  auto tokenizer = v.file().flag("ggml.add_space_prefix", false).open();
  CHECK(spell(*tokenizer, "abc") == "abc|");
  CHECK(spell(*tokenizer, "bcab") == "bc|ab|");
  CHECK(spell(*tokenizer, "aaaaa") ==
        "aaa|aa|");  // aa, aa, a: then both cuts of aaa, from the left
  CHECK(spell(*tokenizer, "a\n") == "a|\n|");
  v.scores.back() = -4;
  CHECK(spell(*v.file().flag("ggml.add_space_prefix", false).open(), "aaaaa") == "aaa|aa|");
}

TEST_CASE("a long text without a space takes time like n log n") {
  auto llama = open_model("llama");
  for (const char* unit : {"a", " ", "ab", "\u4f60", "\U0001f99c", "e\u0301", "\n"}) {
    std::string text;
    while (text.size() < kLongText) text += unit;
    const CpuClock clock;
    CHECK(llama->encode(text).size() > 0);
    CHECK_MESSAGE(clock.within(5), "many of \"", std::string(unit), "\" took ", clock.seconds());
  }
}

TEST_CASE("added tokens of spaces and marks are found, and decoded, as tokenizers does") {
  const Json replace = {
      {"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpaceMark}};
  const Json prepend = {{"type", "Prepend"}, {"prepend", kSpaceMark}};
  const Json normalizer = {{"type", "Sequence"}, {"normalizers", {prepend, replace}}};
  struct Added {
    std::string content;
    bool normalized = false, lstrip = false, rstrip = false;
  };
  auto open = [&](const std::vector<Added>& added, const Json& how) {
    Json file = read_json(kFolder + "tokenizer.json");
    file["normalizer"] = how;
    for (const Added& a : added) {
      std::size_t id = file["model"]["vocab"].size();
      for (const Json& entry : file["added_tokens"]) id += entry["id"].get<std::size_t>() >= id;
      const auto known = file["model"]["vocab"].find(a.content);
      if (known != file["model"]["vocab"].end()) id = known->get<std::size_t>();
      file["added_tokens"].push_back({{"id", id},
                                      {"content", a.content},
                                      {"single_word", false},
                                      {"lstrip", a.lstrip},
                                      {"rstrip", a.rstrip},
                                      {"normalized", a.normalized},
                                      {"special", false}});
    }
    Scratch folder;
    folder.write("tokenizer.json", file.dump());
    return Tokenizer::from_folder(folder.path.string());
  };
  // A token that takes white space along: one of white space is found in it once more, and one that
  // takes along what stands before it is nothing then.
  auto t = open({{"<q>", false, false, true}, {"\t", false}}, normalizer);
  CHECK(spell(*t, "<q>\t\t") == "<q>|\t|\t|");
  t = open({{"<q>", false, false, true}, {"\t", false, true}}, normalizer);
  CHECK(spell(*t, "<q>\t") == "<q>|");
  // White space is looked at once, however many tokens could take it along.
  const std::string tabs(1 << 20, '\t');
  t = open({{"\t", false, true, true}}, normalizer);
  CHECK(t->encode("a" + tabs).size() == t->encode("a\t").size());
  t = open({{"\t", false, true, false}}, normalizer);
  CHECK(t->encode("a" + tabs).size() == t->encode("a").size() + tabs.size());
  // Once normalised a token has a mark before it, which stands for a space of the text.
  t = open({{"<q>", true}}, normalizer);
  CHECK(spell(*t, "<q>") == "<q>|");
  CHECK(t->decode(t->encode("<q> <q>"), false) == "<q> <q>");
  CHECK(t->token_text(t->id_of("<q>")) == "<q>");
  // What is no token of the vocabulary is no part of a piece.
  t = open({{"\u0416", true}}, normalizer);
  CHECK(t->encode("\u0416").size() == 1);
  CHECK(t->encode("\u0416\u0416").size() == 3);  // one behind a mark, and two bytes
  CHECK_THROWS_AS(open({{"  ", true}, {std::string(kSpaceMark) + kSpaceMark, true}}, replace),
                  InputError);
}

TEST_CASE("hostile sentencepiece vocabularies are refused by name") {
  CHECK(Vocabulary().file().error() == "accepted");
  auto with = [](auto&& change) {
    Vocabulary v;
    change(v);
    return v.file().error();
  };
  CHECK_REFUSED(with([](Vocabulary& v) { v.scores.pop_back(); }), "scores");
  CHECK_REFUSED(with([](Vocabulary& v) { v.types.pop_back(); }), "token_type");
  CHECK_REFUSED(with([](Vocabulary& v) { v.scores[7] = NAN; }), "token 7 is not finite");
  CHECK_REFUSED(with([](Vocabulary& v) { v.tokens[3] = "<0xGG>"; }), "<0xGG>");
  CHECK_REFUSED(with([](Vocabulary& v) { v.types[3] = 1, v.tokens[3] = "x"; }), "<0x00>");
  CHECK_REFUSED(with([](Vocabulary& v) { v.add("aq", -1); }), "no token by itself");
  CHECK_REFUSED(with([](Vocabulary& v) { v.add("ab", -1, 5); }), "unused");
  CHECK_REFUSED(with([](Vocabulary& v) { v.add(std::string(1000, 'a'), -1); }), "1000 bytes");
  CHECK_REFUSED(with([](Vocabulary& v) { v.add("a", -1); }), "are the same");
  CHECK_REFUSED(Vocabulary().file().flag("ggml.remove_extra_whitespaces", true).error(),
                "remove_extra_whitespaces");
  CHECK_REFUSED(Vocabulary().file().text("ggml.precompiled_charsmap", "x").error(), "charsmap");
  CHECK_REFUSED(GgufText().text("ggml.model", "llama").texts("ggml.tokens", {"a"}).error(),
                "scores");
}

TEST_CASE("parts of tokenizer.json that would change ids and are not known are refused by name") {
  auto error = [](auto&& change) {
    Json file = read_json(kFolder + "tokenizer.json");
    change(file);
    try {
      open_form(file);
    } catch (const InputError& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  CHECK(error([](Json&) {}) == "accepted");
  for (const char* name : {"NFKC", "Lowercase", "NFD", "Strip", "Precompiled", "StripAccents"})
    CHECK_REFUSED(error([&](Json& f) { f["normalizer"] = {{"type", name}}; }), name);
  CHECK_REFUSED(
      error([](Json& f) { f["normalizer"]["normalizers"][0]["prepend"] = std::string(17, 'x'); }),
      "prepend");
  auto replace = [](const char* pattern, const std::string& content) {
    return Json{{"type", "Replace"}, {"pattern", {{"String", pattern}}}, {"content", content}};
  };
  CHECK_REFUSED(error([&](Json& f) { f["normalizer"] = replace("", "x"); }), "empty");
  CHECK_REFUSED(error([&](Json& f) { f["normalizer"] = replace("a", "xxxx"); }), "content");
  CHECK_REFUSED(
      error([](Json& f) {
        f["normalizer"] = {{"type", "Replace"}, {"pattern", {{"Regex", "a+"}}}, {"content", "x"}};
      }),
      "String");
  CHECK_REFUSED(error([&](Json& f) {
                  f["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
                  for (int i = 0; i < 9; ++i)
                    f["normalizer"]["normalizers"].push_back(replace("a", "aaa"));
                }),
                "steps");
  auto metaspace = [](const char* key, const Json& value) {
    Json part = {{"type", "Metaspace"}, {"replacement", kSpaceMark}};
    part[key] = value;
    return part;
  };
  CHECK_REFUSED(error([&](Json& f) { f["pre_tokenizer"] = metaspace("prepend_scheme", "often"); }),
                "often");
  CHECK_REFUSED(error([&](Json& f) { f["pre_tokenizer"] = metaspace("replacement", "long one"); }),
                "long one");
  CHECK_REFUSED(error([](Json& f) {
                  f["pre_tokenizer"] = {
                      {"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", "Removed"}};
                }),
                "Removed");
  CHECK_REFUSED(error([](Json& f) {
                  f["pre_tokenizer"] = {{"type", "UnicodeScripts"}};
                }),
                "UnicodeScripts");
  CHECK_REFUSED(error([](Json& f) { f["decoder"] = nullptr; }), "decoder");
  CHECK_REFUSED(error([](Json& f) { f["decoder"] = {{"type", "WordPiece"}}; }), "WordPiece");
  CHECK_REFUSED(
      error([](Json& f) { std::swap(f["decoder"]["decoders"][0], f["decoder"]["decoders"][1]); }),
      "in this place");
  CHECK_REFUSED(error([](Json& f) {
                  f["model"]["vocab"].erase("<0x41>");
                  f["model"]["vocab"]["zzzz"] = 3 + 0x41;
                }),
                "<0x41>");
}
