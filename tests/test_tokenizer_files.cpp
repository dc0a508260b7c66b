// Would catch: a tokenizer file that is half believed: contradictions, unknown parts, wrong types;
// and the two formats giving different ids.
#include <utility>

#include "gguf_text.h"
#include "harness.h"
#include "io/gguf.h"
#include "tensor/error.h"
#include "tokenizer_fixture.h"

using namespace lk;
using namespace lk::test;

namespace {

std::string load_error(const Json& tokenizer) {
  Scratch folder;
  folder.write("tokenizer.json", tokenizer.dump());
  try {
    Tokenizer::from_folder(folder.path.string());
  } catch (const InputError& e) {
    return e.what();
  }
  return "accepted";
}

// The small tokenizer in the form that a GGUF converter would write.
GgufText converted(const std::string& name, const std::string& pre) {
  const Json file = small_json(name);
  const Json& vocabulary = file.at("model").at("vocab");
  std::vector<std::string> tokens(vocabulary.size()), merges;
  std::vector<std::int32_t> types(vocabulary.size(), 1);
  for (const auto& [token, id] : vocabulary.items()) tokens[id.get<std::size_t>()] = token;
  for (const Json& added : file.at("added_tokens")) {
    const auto id = added.at("id").get<std::size_t>();
    tokens.resize(std::max(tokens.size(), id + 1));
    types.resize(tokens.size(), 1);
    tokens[id] = added.at("content").get<std::string>();
    types[id] = added.at("special").get<bool>() ? 3 : 4;
  }
  for (const Json& merge : file.at("model").at("merges"))
    merges.push_back(merge.is_string()
                         ? merge.get<std::string>()
                         : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  return GgufText()
      .text("ggml.model", "gpt2")
      .text("ggml.pre", pre)
      .texts("ggml.tokens", tokens)
      .numbers("ggml.token_type", types)
      .texts("ggml.merges", merges)
      .number("ggml.bos_token_id", 0)
      .number("ggml.eos_token_id", 2);
}

// A few tokens as GGUF; a test passes its changes as arguments.
GgufText few(const std::vector<std::string>& tokens = {"a", "b", "ab", "<end>"},
             const std::vector<std::string>& merges = {"a b"},
             const std::vector<std::int32_t>& types = {1, 1, 1, 3}) {
  return GgufText()
      .text("ggml.model", "gpt2")
      .text("ggml.pre", "gpt-2")
      .texts("ggml.tokens", tokens)
      .texts("ggml.merges", merges)
      .numbers("ggml.token_type", types);
}

}  // namespace

TEST_CASE("what a folder says of bos, eos and templates") {
  Scratch folder;
  folder.write("tokenizer.json", small_json("llama3").dump());
  auto bare = Tokenizer::from_folder(folder.path.string());
  CHECK(bare->eos() == -1);
  CHECK(bare->chat_template().empty());
  folder.write("tokenizer_config.json",
               R"({"eos_token":{"content":"<|im_end|>","lstrip":false},"bos_token":"<|endoftext|>",
                   "chat_template":[{"name":"tool_use","template":"no"},{"name":"default","template":"yes"}]})");
  folder.write("generation_config.json", R"({"eos_token_id":[2,1]})");
  auto full = Tokenizer::from_folder(folder.path.string());
  CHECK(full->eos() == 2);
  CHECK(full->bos() == 0);
  CHECK(full->before_text() == Ids{0});
  CHECK(full->stop_ids() == Ids{2, 1, 0});
  CHECK(full->chat_template() == "yes");
  CHECK(full->tool_template() == "no");
  folder.write("chat_template.jinja", "own");  // files hide the list
  auto own = Tokenizer::from_folder(folder.path.string());
  CHECK(own->chat_template() == "own");
  CHECK(own->tool_template().empty());
  std::filesystem::create_directory(folder.path / "additional_chat_templates");
  folder.write("additional_chat_templates/tool_use.jinja", "tools");
  CHECK(Tokenizer::from_folder(folder.path.string())->tool_template() == "tools");
  folder.write("generation_config.json", R"({"eos_token_id":[99999]})");
  CHECK_THROWS_AS(Tokenizer::from_folder(folder.path.string()), InputError);
  folder.write("generation_config.json", R"({})");
  folder.write("tokenizer_config.json", R"({"eos_token":"<nope>"})");
  CHECK_THROWS_AS(Tokenizer::from_folder(folder.path.string()), InputError);
}

TEST_CASE("hostile tokenizer.json files are refused by name") {
  CHECK(load_error(small_json()) == "accepted");
  auto with = [](auto&& change) {
    Json file = small_json();
    change(file);
    return load_error(file);
  };
  // T1-T4: ids.
  CHECK_REFUSED(with([](Json& f) { f["model"]["vocab"]["zzzz"] = 5; }), "share id 5");
  CHECK_REFUSED(with([](Json& f) { f["model"]["vocab"]["zzzz"] = 1000000000; }), "gap");
  CHECK_REFUSED(with([](Json& f) { f["model"]["vocab"]["zzzz"] = -1; }), "not an id");
  CHECK_REFUSED(with([](Json& f) { f["model"]["vocab"]["zzzz"] = 1.5; }), "not an id");
  CHECK_REFUSED(with([](Json& f) { f["added_tokens"][0]["id"] = 4000000000u; }), "id");
  CHECK_REFUSED(with([](Json& f) { f["added_tokens"][0]["id"] = 2147483647; }), "gap");
  CHECK_REFUSED(with([](Json& f) { f["added_tokens"][0]["content"] = "other"; }), "share id 0");
  CHECK_REFUSED(with([](Json& f) { f["added_tokens"].push_back(f["added_tokens"][0]); }), "twice");
  // T5, G25: merges.
  CHECK_REFUSED(with([](Json& f) { f["model"]["merges"][3] = {"Q", "Qqq"}; }), "merge 3");
  CHECK_REFUSED(with([](Json& f) { f["model"]["merges"][3] = "a b c"; }), "merge 3");
  CHECK_REFUSED(with([](Json& f) { f["model"]["merges"][3] = 7; }), "merge 3");
  CHECK_REFUSED(with([](Json& f) { f["model"]["merges"][3] = f["model"]["merges"][2]; }), "twice");
  CHECK_REFUSED(with([](Json& f) { f["model"]["merges"] = "a b"; }), "merges");
  // T6-T9.
  CHECK_REFUSED(with([](Json& f) { f["model"]["unk_token"] = "<unk>"; }), "<unk>");
  auto split = [](const char* pattern) {
    return Json::parse(R"({"type":"Sequence","pretokenizers":[{"type":"Split","behavior":"Isolated",
      "invert":false,"pattern":{"Regex":"x"}},{"type":"ByteLevel","add_prefix_space":false,
      "use_regex":false}]})")
        .patch(Json::parse(R"([{"op":"replace","path":"/pretokenizers/0/pattern/Regex","value":")" +
                           std::string(pattern) + R"("}])"));
  };
  CHECK_REFUSED(with([&](Json& f) { f["pre_tokenizer"] = split("(a+)+$"); }), "(a+)+$");
  CHECK_REFUSED(with([](Json& f) { f["pre_tokenizer"] = {{"type", "Whitespace"}}; }), "Whitespace");
  CHECK_REFUSED(with([](Json& f) { f["pre_tokenizer"] = nullptr; }), "pre_tokenizer");
  CHECK_REFUSED(with([](Json& f) { f["pre_tokenizer"]["add_prefix_space"] = true; }),
                "add_prefix_space");
  CHECK_REFUSED(with([](Json& f) { f["normalizer"] = {{"type", "Lowercase"}}; }), "Lowercase");
  CHECK_REFUSED(with([](Json& f) { f["decoder"] = {{"type", "Metaspace"}}; }), "Metaspace");
  CHECK_REFUSED(with([](Json& f) { f["post_processor"] = {{"type", "BertProcessing"}}; }), "Bert");
  CHECK_REFUSED(with([](Json& f) { f["model"]["type"] = "Unigram"; }), "Unigram");
  CHECK_REFUSED(with([](Json& f) { f["model"]["dropout"] = 0.1; }), "dropout");
  CHECK_REFUSED(with([](Json& f) { f["model"]["byte_fallback"] = true; }), "byte_fallback");
  CHECK_REFUSED(with([](Json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }), "end_of_word");
  CHECK_REFUSED(with([](Json& f) { f["model"].erase("vocab"); }), "vocab");
  CHECK_REFUSED(with([](Json& f) { f["model"]["vocab"] = Json::object(); }), "gap");
  CHECK_REFUSED(with([](Json& f) {
                  const auto id = f["model"]["vocab"].size() + f["added_tokens"].size() - 3;
                  f["added_tokens"].push_back({{"content", ""}, {"id", id}});
                }),
                "empty");
  CHECK_REFUSED(with([](Json& f) {
                  const auto id = f["model"]["vocab"].size() + f["added_tokens"].size() - 3;
                  f["added_tokens"].push_back({{"content", std::string(1 << 20, 'a')}, {"id", id}});
                }),
                "1048576 bytes");
  CHECK_REFUSED(load_error(Json::array()), "object");
  // T10, T11: depth, UTF-8.
  Scratch folder;
  folder.write("tokenizer.json", std::string(100000, '['));
  CHECK_THROWS_AS(Tokenizer::from_folder(folder.path.string()), InputError);
  folder.write("tokenizer.json", "{\"a\":\"\xff\"}");
  CHECK_THROWS_AS(Tokenizer::from_folder(folder.path.string()), InputError);
  CHECK_THROWS_AS(Tokenizer::from_folder((folder.path / "absent").string()), Error);
  // T13: the file's truncation and padding do nothing.
  CHECK(with([](Json& f) { f["truncation"] = {{"max_length", 0}}; }) == "accepted");
}

TEST_CASE("contradictions in a vocabulary are refused whatever file they come from") {
  auto error = [](auto&& change) {
    TokenizerSpec spec = tiny();
    change(spec);
    try {
      TokenizerBuilder::build(std::move(spec));
    } catch (const InputError& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  CHECK(error([](TokenizerSpec&) {}) == "accepted");
  CHECK_REFUSED(error([](TokenizerSpec& s) { s.tokens.push_back("a"); }), "are the same");
  CHECK_REFUSED(error([](TokenizerSpec& s) { s.tokens.push_back("\xff"); }), "UTF-8");
  CHECK_REFUSED(error([](TokenizerSpec& s) { s.tokens.clear(); }), "empty");
  CHECK_REFUSED(error([](TokenizerSpec& s) { s.tokens = {"word", "other"}; }), "byte-level");
  CHECK_REFUSED(error([](TokenizerSpec& s) { s.merges = {{"a", "b"}}; }), "\"ab\"");
  CHECK_REFUSED(error([](TokenizerSpec& s) { s.merges = {{"", "b"}}; }), "merge 0");
  CHECK_REFUSED(error([](TokenizerSpec& s) { s.eos = 256; }), "eos");
  CHECK_REFUSED(error([](TokenizerSpec& s) { s.bos = -2; }), "bos");
  CHECK_REFUSED(error([](TokenizerSpec& s) { s.stop_ids = {1 << 30}; }), "stop");
}

TEST_CASE("a tokenizer gives the same ids from GGUF and from tokenizer.json") {
  for (const auto& [name, pre] : {std::pair<std::string, std::string>{"gpt2", "gpt-2"},
                                  {"smollm", "smollm"},
                                  {"llama3", "llama-bpe"},
                                  {"qwen2", "qwen2"}}) {
    auto gguf = converted(name, pre).open();
    auto json = open_small(name);
    CHECK(gguf->pre_tokenizer() == name);
    CHECK(gguf->n_tokens() == json->n_tokens());
    CHECK(gguf->eos() == 2);
    CHECK(gguf->before_text() == json->before_text());
    // GGUF can't express lstrip, rstrip, single_word and normalized.
    std::string text = long_text();
    for (const char* added :
         {"<lefty>", "<righty>", "<both>", "whole", "na\u00efvest", "nai\u0308vest"})
      for (std::size_t at = 0; (at = text.find(added, at)) != std::string::npos;) text[at] = '(';
    CHECK_MESSAGE(gguf->encode(text) == json->encode(text), name);
  }
}

TEST_CASE("what a GGUF file says of bos, eos and stop tokens") {
  auto plain = few().open();
  CHECK(plain->eos() == -1);
  CHECK(plain->stop_ids().empty());
  CHECK(plain->before_text().empty());
  CHECK(plain->encode("ab<end>ba") == Ids{2, 3, 1, 0});
  auto full = few({"a", "b", "<|eot_id|>", "<end>", "<more>"}, {}, {1, 1, 3, 1, 4})
                  .number("ggml.eos_token_id", 3)
                  .number("ggml.bos_token_id", 0)
                  .number("ggml.eot_token_id", 2)
                  .flag("ggml.add_bos_token", true)
                  .text("chat_template", "T")
                  .text("chat_template.tool_use", "U")
                  .open();
  CHECK(full->stop_ids() == Ids{3, 2});
  CHECK(full->before_text() == Ids{0});
  CHECK(full->after_text().empty());
  CHECK(full->chat_template() == "T");
  CHECK(full->tool_template() == "U");
  // Its type is ordinary, but it ends texts: still found, still left out.
  CHECK(full->encode("a<end>b<more>") == Ids{0, 3, 1, 4});
  CHECK(full->decode(full->encode("a<end>b<more>")) == "b<more>");
}

TEST_CASE("what stands around each text, by a GGUF file's flags or llama.cpp's defaults") {
  auto around = [](GgufText file) {
    auto tokenizer = file.open();
    return std::pair(tokenizer->before_text(), tokenizer->after_text());
  };
  using Around = std::pair<Ids, Ids>;
  auto named = [] { return few().number("ggml.bos_token_id", 3).number("ggml.eos_token_id", 2); };
  CHECK(around(named()) == Around{{}, {}});
  CHECK(around(named().flag("ggml.add_bos_token", true)) == Around{{3}, {}});
  CHECK(around(named().flag("ggml.add_eos_token", true)) == Around{{}, {2}});
  CHECK(around(named().flag("ggml.add_bos_token", true).flag("ggml.add_eos_token", true)) ==
        Around{{3}, {2}});
  CHECK(around(named().flag("ggml.add_bos_token", false)) == Around{{}, {}});
  CHECK_REFUSED(few().flag("ggml.add_bos_token", true).error(), "bos_token_id");
  CHECK_REFUSED(few().flag("ggml.add_eos_token", true).error(), "eos_token_id");
}

TEST_CASE("hostile post-processors are refused by name") {
  auto with = [](const std::string& processor) {
    Json file = small_json();
    file["post_processor"] = Json::parse(processor);
    return load_error(file);
  };
  auto processing = [&](const std::string& single, const std::string& special) {
    return with(R"({"type":"TemplateProcessing","single":)" + single + R"(,"special_tokens":)" +
                special + "}");
  };
  const std::string a = R"({"Sequence":{"id":"A","type_id":0}})";
  const std::string x = R"({"SpecialToken":{"id":"x","type_id":0}})";
  CHECK(processing("[" + a + "]", "{}") == "accepted");
  CHECK(processing("[" + x + "," + a + "]", R"({"x":{"id":"x","ids":[0,1],"tokens":[]}})") ==
        "accepted");
  CHECK_REFUSED(processing("7", "{}"), "single");
  CHECK_REFUSED(processing("[]", "{}"), "sequence A");
  CHECK_REFUSED(processing("[" + a + "," + a + "]", "{}"), "sequence A");
  CHECK_REFUSED(processing(R"([{"Sequence":{"id":"B","type_id":0}}])", "{}"), "sequence A");
  CHECK_REFUSED(processing("[7," + a + "]", "{}"), "not an object");
  CHECK_REFUSED(processing("[{}," + a + "]", "{}"), "SpecialToken");
  CHECK_REFUSED(processing("[" + x + "," + a + "]", "{}"), "\"x\"");
  CHECK_REFUSED(processing("[" + x + "," + a + "]", R"({"x":{"ids":[]}})"), "ids");
  CHECK_REFUSED(processing("[" + x + "," + a + "]", R"({"x":{"ids":[999999]}})"), "ids");
  CHECK_REFUSED(with(R"({"type":"BertProcessing"})"), "BertProcessing");
}

TEST_CASE("hostile GGUF tokenizers are refused by name") {
  CHECK(few().error() == "accepted");
  CHECK_REFUSED(GgufText().error(), "tokenizer.ggml.model");
  CHECK_REFUSED(GgufText().text("ggml.model", "bert").text("ggml.pre", "x").error(), "\"bert\"");
  CHECK_REFUSED(GgufText().text("ggml.model", "gpt2").error(), "tokenizer.ggml.pre");
  CHECK_REFUSED(GgufText().text("ggml.model", "gpt2").text("ggml.pre", "tekken").error(), "tekken");
  CHECK_REFUSED(GgufText().text("ggml.model", "gpt2").text("ggml.pre", "gpt-2").error(), "tokens");
  CHECK_REFUSED(few({}, {}, {}).error(), "empty");
  CHECK_REFUSED(few({"a", "a"}, {}, {1, 1}).error(), "are the same");
  CHECK_REFUSED(few({"a", "\xff"}, {}, {1, 1}).error(), "UTF-8");
  CHECK_REFUSED(few({"a", "b"}, {}, {1}).error(), "token_type");      // G20
  CHECK_REFUSED(few({"a", "<0x-1>"}, {}, {1, 6}).error(), "<0x-1>");  // G24
  CHECK_REFUSED(few({"a", "b"}, {}, {1, 99}).error(), "99");
  CHECK_REFUSED(few({"a", "b"}, {"a b"}, {1, 1}).error(), "\"ab\"");  // G25
  CHECK_REFUSED(few({"a", "b"}, {"a c"}, {1, 1}).error(), "\"c\"");
  CHECK_REFUSED(few({"a", "b"}, {"ab"}, {1, 1}).error(), "entry 0");
  CHECK_REFUSED(few({"a", "b"}, {"a b c"}, {1, 1}).error(), "entry 0");
  CHECK_REFUSED(few({"a", "aa"}, {"a a", "a a"}, {1, 1}).error(), "twice");
  CHECK_REFUSED(few({"a", ""}, {}, {1, 3}).error(), "empty");
  CHECK_REFUSED(few({"a", "b"}, {"a "}, {1, 1}).error(), "merge 0");
  CHECK_REFUSED(few().number("ggml.eos_token_id", 4).error(), "eos_token_id");
  CHECK_REFUSED(few().number("ggml.bos_token_id", 4000000000u).error(), "bos_token_id");
  CHECK_REFUSED(few().text("ggml.eos_token_id", "2").error(), "eos_token_id");
  CHECK_REFUSED(few().number("chat_template", 1).error(), "chat_template");
}
