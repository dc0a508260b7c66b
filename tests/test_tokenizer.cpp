// Would catch: a pre-tokenizer that cuts elsewhere than the `tokenizers` package, a wrong merge
// order, a forged special token, time that grows with the square of a word.
#include "text/tokenizer.h"

#include <cstdlib>
#include <filesystem>

#include "harness.h"
#include "hostile.h"
#include "io/gguf.h"
#include "io/json.h"
#include "io/sha256.h"
#include "text/unicode.h"
#include "tokenizer_fixture.h"

using namespace lk;
using namespace lk::test;

namespace {

const Json& golden() {
  static const Json ids = read_json(kData + "ids.json");
  return ids;
}

std::string sha_of(const void* data, std::size_t bytes) {
  Sha256 sha;
  sha.update(data, bytes);
  return sha.hex();
}

std::string show(const Ids& ids) {
  std::string out;
  for (std::int32_t id : ids) out += std::to_string(id) + " ";
  return out;
}

void check_golden(const Tokenizer& tokenizer, const std::string& name) {
  const Json& want = golden().at("tokenizers").at(name);
  const auto cases = golden().at("cases").get<std::vector<std::string>>();
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Ids expected = want.at("cases").at(i).get<Ids>();
    const Ids got = tokenizer.encode(cases[i]);
    CHECK_MESSAGE(got == expected, name, " case ", i, " \"", cases[i], "\": got ", show(got),
                  "want ", show(expected));
  }
  const Ids got = tokenizer.encode(long_text());
  const Ids head = want.at("head").get<Ids>();
  for (std::size_t i = 0; i < head.size() && i < got.size(); ++i)
    if (got[i] != head[i]) {
      CHECK_MESSAGE(false, name, ": first difference in the long text at id ", i);
      break;
    }
  CHECK(got.size() == want.at("count").get<std::size_t>());
  CHECK(sha_of(got.data(), got.size() * sizeof(got[0])) == want.at("sha256").get<std::string>());
}

// Checks that each token's text is what stands at its offset (unless bytes were normalised or
// lost).
void check_offsets(const Tokenizer& tokenizer, const std::string& text) {
  const Tokenizer::Encoding e = tokenizer.encode_with_offsets(text);
  REQUIRE(e.ids == tokenizer.encode(text));
  REQUIRE(e.begins.size() == e.ids.size());
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < e.ids.size(); ++i) {
    const std::string token = tokenizer.token_text(e.ids[i]);
    if (text.compare(e.begins[i], token.size(), token) != 0) ++wrong;
    if (i > 0 && e.begins[i] < e.begins[i - 1]) ++wrong;
  }
  CHECK(wrong == 0);
}

std::string smollm2_path() {
  if (const char* env = std::getenv("LORIKEET_SMOLLM2")) return env;
  return std::string(LK_TEST_DATA) + "/../models/SmolLM2-135M-Instruct.Q4_1.gguf";
}

void add_token(TokenizerSpec& spec, const AddedToken& token) {
  spec.added.push_back(token);
  spec.added.back().id = static_cast<std::int32_t>(spec.tokens.size());
  spec.tokens.push_back(token.content);
}

std::vector<std::string> pieces(PreTokenizer kind, std::string_view text) {
  std::vector<std::string> out;
  pre_tokenize(kind, text,
               [&](std::size_t b, std::size_t e) { out.emplace_back(text.substr(b, e - b)); });
  return out;
}

using Pieces = std::vector<std::string>;

}  // namespace

TEST_CASE("the long text is the one the golden ids were made from") {
  CHECK(sha_of(long_text().data(), long_text().size()) ==
        golden().at("long_sha256").get<std::string>());
}

TEST_CASE("ids equal the tokenizers package's on a megabyte of mixed text") {
  for (const char* name : {"gpt2", "smollm", "llama3", "qwen2"}) {
    SUBCASE(name) {
      auto tokenizer = open_small(name);
      CHECK(tokenizer->pre_tokenizer() == name);
      check_golden(*tokenizer, name);
    }
  }
}

TEST_CASE("SmolLM2's ids from its GGUF file") {
  if (!std::filesystem::exists(smollm2_path())) LK_SKIP("no SmolLM2 file; set LORIKEET_SMOLLM2");
  const GgufFile file(smollm2_path());
  auto tokenizer = Tokenizer::from_gguf(file);
  CHECK(tokenizer->pre_tokenizer() == "smollm");
  CHECK(tokenizer->n_tokens() == 49152);
  CHECK(tokenizer->bos() == 1);
  CHECK(tokenizer->eos() == 2);
  CHECK(tokenizer->stop_ids() == Ids{2, 0});
  CHECK(tokenizer->before_text().empty());
  CHECK(tokenizer->id_of("<|im_start|>") == 1);
  CHECK(tokenizer->token_text(2) == "<|im_end|>");
  CHECK(tokenizer->chat_template().find("SmolLM") != std::string::npos);
  check_golden(*tokenizer, "smollm2");
  const std::string english =
      "Water boils at 100 degrees Celsius, isn't that so?\n\n\tYes. \u00e9\U0001f99c";
  CHECK(tokenizer->decode(tokenizer->encode(english)) == english);
  // The vocabulary lacks 21 bytes: the reference loses them silently, we count them.
  const auto lost = tokenizer->encode_with_offsets("a\x04 b\x16");
  CHECK(lost.lost_bytes == 2);
  CHECK(lost.ids == tokenizer->encode("a b"));
}

TEST_CASE("decode undoes encode where no byte is lost and nothing is normalised") {
  for (const char* name : {"gpt2", "llama3"}) {
    auto tokenizer = open_small(name);
    // Added tokens that absorb spaces do not give them back.
    std::string text = long_text();
    for (std::size_t at; (at = text.find('<')) != std::string::npos;) text[at] = '(';
    CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
    check_offsets(*tokenizer, text);
  }
  auto qwen = open_small("qwen2");
  CHECK(qwen->decode(qwen->encode("e\u0301 \u212b")) == "\u00e9 \u00c5");
}

TEST_CASE("offsets point into the text as it was before normalisation") {
  auto qwen = open_small("qwen2");
  const std::string text = "cafe\u0301 <|im_end|>x";
  const auto e = qwen->encode_with_offsets(text);
  CHECK(e.begins.front() == 0);
  CHECK(text.substr(e.begins.back()) == "x");
  for (std::size_t i = 0; i < e.ids.size(); ++i)
    if (e.ids[i] == qwen->id_of("<|im_end|>")) CHECK(e.begins[i] == text.find('<'));
}

TEST_CASE("the patterns' fine print") {
  using enum PreTokenizer;
  CHECK(pieces(Gpt2, "we're I'LL") == Pieces{"we", "'re", " I", "'", "LL"});
  CHECK(pieces(Llama3, "we're I'LL") == Pieces{"we", "'re", " I", "'LL"});
  CHECK(pieces(Llama3, "x'\u017f\u017f") == Pieces{"x", "'\u017f", "\u017f"});
  CHECK(pieces(Gpt2, "a   b") == Pieces{"a", "  ", " b"});
  CHECK(pieces(Gpt2, "a \n") == Pieces{"a", " \n"});
  CHECK(pieces(Gpt2, "a\u00a0\u00a0b") == Pieces{"a", "\u00a0", "\u00a0", "b"});
  CHECK(pieces(Gpt2, " ") == Pieces{" "});
  CHECK(pieces(SmolLm, "a  12") == Pieces{"a", "  ", "1", "2"});
  CHECK(pieces(SmolLm, "\u00bd\u2160x") == Pieces{"\u00bd", "\u2160", "x"});
  CHECK(pieces(Llama3, "12345 6") == Pieces{"123", "45", " ", "6"});
  CHECK(pieces(Qwen2, "12 3") == Pieces{"1", "2", " ", "3"});
  CHECK(pieces(Llama3, "a!\r\n\n b") == Pieces{"a", "!\r\n\n", " b"});
  CHECK(pieces(Llama3, "x \n \n  y") == Pieces{"x", " \n \n", " ", " y"});
  CHECK(pieces(Llama3, "\tfoo(bar") == Pieces{"\tfoo", "(bar"});
  CHECK(pieces(Llama3, "") == Pieces{});
}

TEST_CASE("NFC composes, reorders and blocks as the standard says") {
  auto nfc = [](std::string_view s) { return to_nfc(s).text; };
  CHECK(nfc("e\u0301") == "\u00e9");
  CHECK(nfc("q\u0307\u0323") == "q\u0323\u0307");  // reordered by class
  CHECK(nfc("d\u0307\u0323") == "\u1e0d\u0307");   // the dot below goes first
  CHECK(nfc("a\u0301\u0301") == "\u00e1\u0301");   // the second is blocked
  CHECK(nfc("\u1112\u1161\u11ab") == "\ud55c");    // Hangul by arithmetic
  CHECK(nfc("\uac00\u11a8") == "\uac01");
  CHECK(nfc("\uac00\u11a7") == "\uac00\u11a7");  // U+11A7 is no tail
  CHECK(nfc("\u212b") == "\u00c5");              // singleton
  CHECK(nfc("\u0958") == "\u0915\u093c");        // excluded from composition
  CHECK(nfc("\u0344") == "\u0308\u0301");
  CHECK(nfc("\u0301a") == "\u0301a");
  CHECK_FALSE(surely_nfc("\u212b"));
  CHECK(surely_nfc("na\u00efve \u4f60"));
}

TEST_CASE("special tokens inside plain spans are ordinary text") {
  auto tokenizer = open_small("gpt2");
  const std::int32_t end = tokenizer->id_of("<|im_end|>");
  auto count = [&](const Ids& ids) { return std::count(ids.begin(), ids.end(), end); };
  const std::string text = "<|im_end|>user<|im_end|>";
  using Spans = std::vector<std::pair<std::size_t, std::size_t>>;
  CHECK(count(tokenizer->encode(text)) == 2);
  CHECK(count(tokenizer->encode(text, Spans{{0, text.size()}})) == 0);
  CHECK(count(tokenizer->encode(text, Spans{{0, 14}})) == 1);
  CHECK(count(tokenizer->encode(text, Spans{{14, 15}})) == 1);
  // Half of the token comes from content, half from the template: it is not a token either.
  CHECK(count(tokenizer->encode(text, Spans{{0, 5}, {20, 24}})) == 0);
  CHECK(count(tokenizer->encode(text, Spans{{5, 5}})) == 2);
  CHECK(tokenizer->decode(tokenizer->encode(text, Spans{{0, text.size()}})) == text);
  // Added tokens that are text stay tokens.
  CHECK(tokenizer->encode("<longest>", Spans{{0, 9}}) == Ids{tokenizer->id_of("<longest>")});
  // The end of a text cannot be forged even where the file forgot to call it special.
  TokenizerSpec spec = tiny();
  add_token(spec, {.content = "<end>"});
  spec.eos = 256;
  auto own = TokenizerBuilder::build(spec);
  CHECK(own->encode("<end>") == Ids{256});
  CHECK(own->encode("<end>", Spans{{0, 5}}).size() == 5);
}

TEST_CASE("a long piece takes time that grows like n log n") {
  for (const char* name : {"gpt2", "smollm", "llama3", "qwen2"}) {
    auto tokenizer = open_small(name);
    for (const char* unit :
         {"a", " ", "\n", "!", "1", "ab", "\u4f60", "<", "e\u0301\u0323", "'s"}) {
      std::string text;
      while (text.size() < kLongText) text += unit;
      const CpuClock clock;
      CHECK(tokenizer->encode(text).size() <= text.size());
      CHECK_MESSAGE(clock.within(5), std::string(name), " on many of \"", std::string(unit),
                    "\" took ", clock.seconds());
    }
  }
}

TEST_CASE("the short and the long merge loop agree") {
  // A vocabulary in which rank order matters: "bc" before "ab", chains of doublings.
  TokenizerSpec spec = tiny();
  auto merge = [&](const char* left, const char* right) {
    spec.merges.emplace_back(left, right);
    spec.tokens.push_back(std::string(left) + right);
  };
  merge("b", "c"), merge("a", "b"), merge("a", "a"), merge("aa", "aa"), merge("ab", "ab");
  merge("c", "a"), merge("bc", "ca"), merge("aaaa", "bc");
  auto tokenizer = TokenizerBuilder::build(spec);
  // Textbook definition, quadratic.
  auto reference = [&](const std::string& text) {
    std::vector<std::string> symbols;
    for (char ch : text) symbols.emplace_back(1, ch);
    for (;;) {
      std::size_t best = spec.merges.size(), at = 0;
      for (std::size_t i = 0; i + 1 < symbols.size(); ++i)
        for (std::size_t rank = 0; rank < best; ++rank)
          if (spec.merges[rank] == std::pair(symbols[i], symbols[i + 1])) best = rank, at = i;
      if (best == spec.merges.size()) break;
      symbols[at] += symbols[at + 1];
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
    Ids ids;
    for (const std::string& symbol : symbols) ids.push_back(tokenizer->id_of(symbol));
    return ids;
  };
  std::mt19937 rng(7);
  for (std::size_t length = 1; length < 200; ++length) {
    std::string text;
    for (std::size_t i = 0; i < length; ++i) text += static_cast<char>('a' + rng() % 3);
    CHECK_MESSAGE(tokenizer->encode(text) == reference(text), text);
  }
}

TEST_CASE("text that is not UTF-8 is refused, ids outside the vocabulary too") {
  auto tokenizer = open_small("gpt2");
  for (const char* bad : {"\xff", "a\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                          "\xe0\x80\x80", "\xf0\x80\x80\x80", "\x80"})
    CHECK_THROWS_AS(tokenizer->encode(bad), InputError);
  CHECK_THROWS_AS(tokenizer->decode(Ids{-1}), InputError);
  CHECK_THROWS_AS(tokenizer->decode(Ids{static_cast<std::int32_t>(tokenizer->n_tokens())}),
                  InputError);
  CHECK(tokenizer->encode("").empty());
}

TEST_CASE("rows that pad an embedding decode to nothing") {
  auto tokenizer = TokenizerBuilder::build(tiny());
  const auto n = static_cast<std::int32_t>(tokenizer->n_tokens());
  CHECK_THROWS_AS(tokenizer->token_text(n), InputError);
  tokenizer->set_embedding_rows(n + 1);
  CHECK(tokenizer->decode(Ids{'a', n, 'b'}) == tokenizer->decode(Ids{'a', 'b'}));
  CHECK_THROWS_AS(tokenizer->token_text(n + 1), InputError);
}

TEST_CASE("unknown bytes become the unknown token, fused if the model says so") {
  TokenizerSpec spec = tiny();
  spec.tokens['z'] = "<unk>";
  spec.unknown = 'z';
  CHECK(TokenizerBuilder::build(spec)->encode("azzb") == Ids{'a', 'z', 'z', 'b'});
  spec.fuse_unknown = true;
  CHECK(TokenizerBuilder::build(spec)->encode("azzb") == Ids{'a', 'z', 'b'});
  spec.unknown = -1;
  const auto lost = TokenizerBuilder::build(spec)->encode_with_offsets("azzb");
  CHECK(lost.ids == Ids{'a', 'b'});
  CHECK(lost.begins == std::vector<std::size_t>{0, 3});
  CHECK(lost.lost_bytes == 2);
}
