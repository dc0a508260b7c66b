// Would catch: sentencepiece-style tokenizers that give other ids once they are converted from GGUF
// to tokenizer.json or back, and what one of the formats can't say being left out without a word.
#include <algorithm>
#include <functional>

#include "gemma_tokenizer.h"
#include "gguf_text.h"
#include "harness.h"
#include "hostile.h"
#include "io/gguf_write.h"
#include "text/tokenizer_convert.h"
#include "tokenizer_fixture.h"

using namespace lk;
using namespace lk::test;

namespace {

const std::string kFolder = kData + "sentencepiece/";

std::unique_ptr<Tokenizer> write_folder(const Scratch& folder, const Json& file) {
  for (const auto& [name, content] : gemma_files(file)) folder.write(name, content);
  return Tokenizer::from_folder(folder.path.string());
}

// `folder` as a GGUF file in the same folder.
std::string to_gguf(const Scratch& folder, std::int64_t n_tokens) {
  std::vector<std::string> notes;
  const std::string path = (folder.path / "made.gguf").string();
  GgufWriter writer(path, gguf_tokenizer(folder.path.string(), n_tokens, notes), {});
  writer.commit();
  return path;
}

void to_folder(const Scratch& folder, const std::string& gguf) {
  for (const auto& [name, content] : hf_tokenizer_files(GgufFile(gguf)))
    folder.write(name, content);
}

// Strings of a few units each, in which added tokens, pieces and spaces touch in every way.
std::vector<std::string> short_texts() {
  const std::vector<std::string> units = {
      " ",    "  ",    "\n", "\t", "a",        "b",     "aa", "hello", "he",   "l", "<b>",
      "</b>", "<unk>", "<",  ">",  "\xc3\xa9", "<eos>", "x",  "   ",   "\n\n", "o"};
  std::vector<std::string> texts;
  std::uint64_t state = 7;
  auto draw = [&](std::uint64_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<std::size_t>((state >> 33) % n);
  };
  for (int i = 0; i < 4000; ++i) {
    std::string text;
    for (std::size_t n = 1 + draw(7); n > 0; --n) text += units[draw(units.size())];
    texts.push_back(text);
  }
  for (const char* unit : {" ", "\n", "\t", "a", "hello", "<b>"})
    for (std::size_t n = 1; n < 40; ++n) texts.push_back("a" + repeat(unit, n) + "b");
  return texts;
}

void check_same(const Tokenizer& a, const Tokenizer& b, const std::vector<std::string>& texts) {
  std::size_t different = 0;
  for (const std::string& text : texts) {
    const Ids first = a.encode(text), second = b.encode(text);
    if (first != second && different++ < 3)
      FAIL_CHECK("\"", text, "\": ", Json(first).dump(), " and ", Json(second).dump());
    if (a.decode(first, false) != b.decode(first, false) && different++ < 3)
      FAIL_CHECK("decoded otherwise: \"", text, "\"");
  }
  CHECK(different == 0);
}

std::string error_of(const std::function<void()>& convert) {
  try {
    convert();
  } catch (const InputError& e) {
    return e.what();
  }
  return "accepted";
}

std::string gguf_error(const Json& file) {
  Scratch folder;
  write_folder(folder, file);
  return error_of([&] { to_gguf(folder, 1 << 12); });
}

// A vocabulary as GGUF has it: bytes, the pieces a b c and a mark, and what a test adds.
GgufText gguf_vocabulary(const std::vector<std::tuple<std::string, float, std::int32_t>>& more,
                         bool prefix) {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<float> scores = {0, 0, 0};
  std::vector<std::int32_t> types = {2, 3, 3};
  auto add = [&](const std::string& token, float score, std::int32_t type) {
    tokens.push_back(token), scores.push_back(score), types.push_back(type);
  };
  for (int b = 0; b < 256; ++b) add(byte_name(b), 0, 6);
  float last = -100;
  for (const std::string& c : {std::string("a"), std::string("b"), std::string("c"), kMark})
    add(c, last--, 1);
  for (const auto& [token, score, type] : more) add(token, score, type);
  return GgufText()
      .text("ggml.model", "llama")
      .texts("ggml.tokens", tokens)
      .reals("ggml.scores", scores)
      .numbers("ggml.token_type", types)
      .flag("ggml.add_space_prefix", prefix);
}

}  // namespace

TEST_CASE("sentencepiece's scores become merges and merges scores, with the same ids") {
  // Two ways to write a run of one character compete by place in one form, by order in the other.
  for (const std::string name : {"llama", "gemma"}) {
    CAPTURE(name);
    const GgufFile file(kFolder + name + ".gguf");
    auto from = Tokenizer::from_gguf(file);
    Scratch folder;
    for (const auto& [path, content] : hf_tokenizer_files(file)) folder.write(path, content);
    auto json = Tokenizer::from_folder(folder.path.string());
    CHECK(json->n_tokens() == from->n_tokens());
    CHECK(json->bos() == from->bos());
    CHECK(json->eos() == from->eos());
    CHECK(json->before_text() == from->before_text());
    CHECK(json->stop_ids() == from->stop_ids());
    check_same(*json, *from, {long_text()});
    check_same(*json, *from, short_texts());

    const std::int64_t n = from->n_tokens();
    auto back = Tokenizer::from_gguf(GgufFile(to_gguf(folder, n + 2)));
    CHECK(back->n_tokens() == n + 2);  // padded as the model's rows are
    CHECK(back->bos() == from->bos());
    check_same(*back, *from, {long_text()});
    check_same(*back, *from, short_texts());
  }
}

TEST_CASE("a tokenizer made as Gemma's gives the same ids in GGUF and in a folder again") {
  for (const bool normalized : {false, true}) {
    CAPTURE(normalized);
    Scratch folder, again;
    GemmaLike gemma;
    gemma.pieces.pop_back();
    gemma.normalized = normalized;
    auto from = write_folder(folder, gemma.file());
    const GgufFile file(to_gguf(folder, from->n_tokens()));
    auto gguf = Tokenizer::from_gguf(file);
    check_same(*gguf, *from, short_texts());
    // Readers of GGUF look for these in the text as it is.
    const auto& tokens = file.get_strings("tokenizer.ggml.tokens");
    const auto types = file.get_ints("tokenizer.ggml.token_type");
    for (const std::string token : {"\n", "\n\n", "  ", "    ", "<b>", "hello"}) {
      CAPTURE(token);
      const auto at = std::find(tokens.begin(), tokens.end(), token) - tokens.begin();
      REQUIRE(at < std::ssize(tokens));
      CHECK(types[static_cast<std::size_t>(at)] == 4);
    }
    CHECK(gguf->stop_ids() == from->stop_ids());
    CHECK(gguf->bos() == from->bos());
    CHECK(gguf->before_text() == Ids{2});
    to_folder(again, (folder.path / "made.gguf").string());
    auto back = Tokenizer::from_folder(again.path.string());
    check_same(*back, *from, short_texts());
    CHECK(back->before_text() == from->before_text());
    CHECK(back->stop_ids() == from->stop_ids());
    CHECK(read_json((again.path / "generation_config.json").string())["eos_token_id"] ==
          Json{1, 4});
  }
}

TEST_CASE("runs of spaces that merges cut elsewhere are not written as tokens found whole") {
  GemmaLike gemma;  // a piece of two marks and a letter
  gemma.pieces.insert(gemma.pieces.end() - 1, "x");
  CHECK_REFUSED(gguf_error(gemma.file()), "at two places in the order");
  gemma.longest_run = 2;  // one way to make it: its merge has a place
  Scratch folder;
  auto from = write_folder(folder, gemma.file());
  const GgufFile file(to_gguf(folder, from->n_tokens()));
  check_same(*Tokenizer::from_gguf(file), *from, short_texts());
  const auto& tokens = file.get_strings("tokenizer.ggml.tokens");
  CHECK(std::count(tokens.begin(), tokens.end(), kMark + kMark) == 1);
}

TEST_CASE("tokens found whole beside a space before each text are converted both ways") {
  Scratch folder, again;
  GemmaLike llama;
  llama.prefix = true;
  llama.longest_run = 0;
  llama.pieces.pop_back();
  auto from = write_folder(folder, llama.file());
  auto gguf = Tokenizer::from_gguf(GgufFile(to_gguf(folder, from->n_tokens())));
  check_same(*gguf, *from, short_texts());
  to_folder(again, (folder.path / "made.gguf").string());
  check_same(*Tokenizer::from_folder(again.path.string()), *from, short_texts());
  llama.normalized = true;
  CHECK_REFUSED(gguf_error(llama.file()), "is normalized");
}

TEST_CASE("added tokens beyond the model's rows are left out with a note, others refused") {
  GemmaLike gemma;
  gemma.pieces.pop_back();
  Json file = gemma.file();
  const std::size_t n = file["model"]["vocab"].size();
  file["added_tokens"].push_back(added_token(n, "<image_soft_token>", true, false));
  Scratch folder;
  write_folder(folder, file);
  std::vector<std::string> notes;
  gguf_tokenizer(folder.path.string(), static_cast<std::int64_t>(n), notes);
  REQUIRE(notes.size() == 1);
  CHECK(notes[0].find("<image_soft_token>") != std::string::npos);
  CHECK_REFUSED(error_of([&] {
                  gguf_tokenizer(folder.path.string(), static_cast<std::int64_t>(n) - 1, notes);
                }),
                "rows");
}

TEST_CASE("ids that no text becomes stay so from folder to GGUF to folder to GGUF") {
  GemmaLike gemma;
  gemma.pieces.pop_back();
  gemma.pieces.push_back("xyz");  // no merge makes it: its letters are no pieces
  Scratch folder, again;
  auto from = write_folder(folder, gemma.file());
  const std::int64_t n = from->n_tokens() + 3;
  to_folder(again, to_gguf(folder, n));
  const GgufFile first((folder.path / "made.gguf").string()), second(to_gguf(again, n));
  CHECK(first.get_strings("tokenizer.ggml.tokens") == second.get_strings("tokenizer.ggml.tokens"));
  CHECK(first.get_ints("tokenizer.ggml.token_type") ==
        second.get_ints("tokenizer.ggml.token_type"));
  CHECK(second.get_ints("tokenizer.ggml.token_type").back() == 5);
  check_same(*Tokenizer::from_gguf(second), *from, short_texts());
}

TEST_CASE("two tokens that GGUF would spell alike are refused by name") {
  GemmaLike gemma;
  gemma.pieces.pop_back();
  gemma.whole.push_back("  ");
  CHECK(gguf_error(gemma.file()) == "accepted");  // found in text, so that merges make no run
  gemma.normalized = true;
  Json file = gemma.file();
  for (Json& token : file["added_tokens"])  // found before normalisation, unlike the run of marks
    if (token["content"] == "  ") token["normalized"] = false;
  CHECK_REFUSED(gguf_error(file), "are both");
}

TEST_CASE("an added token that marks would make too long is refused by name") {
  GemmaLike gemma;
  gemma.pieces.pop_back();
  gemma.whole.push_back("a" + repeat(" ", 1000));
  CHECK_REFUSED(gguf_error(gemma.file()), "1024 bytes");
}

TEST_CASE("ids that end a generation and have no place in GGUF are noted") {
  GemmaLike gemma;
  gemma.pieces.pop_back();
  Scratch folder;
  write_folder(folder, gemma.file());
  folder.write("generation_config.json", R"({"eos_token_id":[1,4,0,2]})");
  std::vector<std::string> notes;
  gguf_tokenizer(folder.path.string(), 1 << 12, notes);
  REQUIRE(notes.size() == 1);
  CHECK(notes[0].find("<bos>") != std::string::npos);
}

TEST_CASE("equal scores are refused where their order counts, and accepted where it does not") {
  auto error = [](float ab, float bc) {
    Scratch folder;
    const GgufText file = gguf_vocabulary({{"bc", bc, 1}, {"ab", ab, 1}, {"ca", -7, 1}}, false);
    return error_of([&] {
      file.write(folder, "model.gguf"), to_folder(folder, (folder.path / "model.gguf").string());
    });
  };
  CHECK(error(-1, -2) == "accepted");
  CHECK_REFUSED(error(-1, -1), "have the same score");
  Scratch folder;
  gguf_vocabulary({{"ab", -1, 1}, {"cc", -1, 1}}, false).write(folder, "model.gguf");
  to_folder(folder, (folder.path / "model.gguf").string());
  const std::vector<std::string> texts = {"abcc", "ccab", "cccab", "aabbcc"};
  check_same(*Tokenizer::from_folder(folder.path.string()),
             *Tokenizer::from_gguf(GgufFile((folder.path / "model.gguf").string())), texts);
}

TEST_CASE("a user-defined token spelled as a piece is refused by name") {
  Scratch folder;
  gguf_vocabulary({{kMark + kMark, -1, 1}, {"  ", 0, 4}}, false).write(folder, "model.gguf");
  CHECK_REFUSED(error_of([&] { to_folder(folder, (folder.path / "model.gguf").string()); }),
                "appears twice");
}

TEST_CASE("a tokenizer.json whose merges are not all that scores would make is refused by name") {
  auto error_with = [](const Json& change) {
    Json file = read_json(kFolder + "tokenizer.json");
    Json added = Json::array();
    for (const Json& entry : file.at("added_tokens"))
      if (entry.at("special") && !entry.at("lstrip") && !entry.at("rstrip") &&
          !entry.at("single_word") && !entry.at("normalized"))
        added.push_back(entry);
    file["added_tokens"] = added;
    file.update(change);
    Scratch folder;
    folder.write("tokenizer.json", file.dump());
    return error_of([&] { to_gguf(folder, 1 << 20); });
  };
  CHECK_REFUSED(error_with(Json::object()), "is no merge although it spells a token");
  CHECK_REFUSED(error_with({{"pre_tokenizer", {{"type", "Metaspace"}}}, {"normalizer", nullptr}}),
                "GGUF has no words");
  GemmaLike gemma;
  gemma.pieces.pop_back();
  Json file = gemma.file();
  file["model"]["vocab"]["<0x41>a"] = file["model"]["vocab"].size();
  file["model"]["merges"].push_back({"<0x41>", "a"});
  CHECK_REFUSED(gguf_error(file), "byte tokens");
}
