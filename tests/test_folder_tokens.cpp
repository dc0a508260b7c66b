// Would catch: a token that a file beside tokenizer.json declares and nobody reads, so that a text
// gets other ids than in transformers; and a folder refused whose files merely say the same twice.
#include "harness.h"
#include "tensor/error.h"
#include "text/tokenizer_convert.h"
#include "tokenizer_fixture.h"

using namespace lk;
using namespace lk::test;

namespace {

constexpr std::int32_t kNext = 2507;  // the first id that tokenizer.json does not use

// What stands beside the small GPT-2's tokenizer.json; null: no such file.
struct Beside {
  Json config = Json::object(), map = nullptr, added = nullptr, model = nullptr;
  std::string small = "gpt2";
};

std::unique_ptr<Tokenizer> open(const Beside& files) {
  const Scratch folder;
  folder.write("tokenizer.json", small_json(files.small).dump());
  folder.write("tokenizer_config.json", files.config.dump());
  for (const auto& [name, file] : {std::pair{"special_tokens_map.json", &files.map},
                                   {"added_tokens.json", &files.added},
                                   {"config.json", &files.model}})
    if (!file->is_null()) folder.write(name, file->dump());
  return Tokenizer::from_folder(folder.path.string());
}

Ids ids(const Beside& files, const std::string& text) { return open(files)->encode(text); }

std::string error(const Beside& files) {
  try {
    open(files);
  } catch (const InputError& e) {
    return e.what();
  }
  return "accepted";
}

Json token(const std::string& content, const char* flag = nullptr) {
  Json t = {{"content", content}, {"single_word", false}, {"lstrip", false},
            {"rstrip", false},    {"normalized", false},  {"special", true}};
  if (flag) t[flag] = true;
  return t;
}

}  // namespace

TEST_CASE("a token that only a file beside tokenizer.json declares is a token") {
  const Ids found = {kNext};
  CHECK(ids({}, "<tok>").size() > 1);
  CHECK(ids({.added = {{"<tok>", kNext}}}, "<tok>") == found);
  CHECK(ids({.config = {{"added_tokens_decoder", {{"2507", token("<tok>")}}}}}, "<tok>") == found);
  for (const char* key : {"additional_special_tokens", "extra_special_tokens"})
    for (const Json& entry : {Json("<tok>"), token("<tok>")}) {
      const Json list = {{key, Json::array({entry})}};
      CHECK(ids({.config = list}, "<tok>") == found);
      CHECK(ids({.map = list}, "<tok>") == found);
    }
  const Json named = {{"extra_special_tokens", {{"image_token", "<tok>"}}}};
  CHECK(ids({.config = named}, "<tok>") == found);
  for (const char* name : {"pad_token", "unk_token", "image_token"}) {
    CHECK(ids({.config = {{name, "<tok>"}}}, "<tok>") == found);
    CHECK(ids({.map = {{name, token("<tok>")}}}, "<tok>") == found);
  }
}

TEST_CASE("new tokens get ids in the order of ids, then of names, then of lists") {
  const Beside many = {
      .config = {{"added_tokens_decoder", {{"2508", token("<b>")}, {"2507", token("<a>")}}},
                 {"pad_token", "<d>"},
                 {"sep_token", "<c>"},
                 {"extra_special_tokens", Json::array({"<f>", "<e>", "<a>"})}}};
  CHECK(ids(many, "<a><b><c><d><f><e>") == Ids{2507, 2508, 2509, 2510, 2511, 2512});
  CHECK(open(many)->n_tokens() == 2513);
}

TEST_CASE("a token of the vocabulary that has a name is found in a text before it is cut") {
  const auto plain = open({});
  REQUIRE(plain->encode("the").size() == 1);
  const Beside named = {.config = {{"pad_token", "h"}}};
  CHECK(ids(named, "the") == Ids{plain->id_of("t"), plain->id_of("h"), plain->id_of("e")});
  CHECK(open(named)->n_tokens() == kNext);
}

TEST_CASE("the flags of added_tokens_decoder are those of its tokens") {
  auto with = [](const char* flag) {
    return Beside{.config = {{"added_tokens_decoder", {{"2", token("<|im_end|>", flag)}}}}};
  };
  const std::string text = "a <|im_end|> b";
  CHECK(ids(with(nullptr), text) == ids({}, text));
  CHECK(ids(with("rstrip"), text) == ids({}, "a <|im_end|>b"));
  CHECK(ids(with("lstrip"), text) == ids({}, "a<|im_end|> b"));
  const Json word = {{"added_tokens_decoder", {{"2507", token("<tok>", "single_word")}}}};
  CHECK(ids({.config = word}, "<tok>") == Ids{kNext});
  CHECK(ids({.config = word}, "a<tok>") == ids({}, "a<tok>"));
}

TEST_CASE("the end token is the one that transformers would take from a folder's files") {
  const Json map = {{"eos_token", token("<|im_end|>")}, {"bos_token", "<|im_start|>"}};
  const Json own = {{"eos_token", "<|endoftext|>"}};
  CHECK(open({.map = map})->eos() == 2);
  CHECK(open({.map = map})->bos() == 1);
  CHECK(open({.config = own, .map = map})->eos() == 2);
  CHECK(open({.config = own, .map = {{"eos_token", nullptr}}})->eos() == -1);
  // With an added_tokens_decoder nobody reads the other files.
  Json both = own;
  both["added_tokens_decoder"] = {{"0", token("<|endoftext|>")}};
  CHECK(open({.config = both, .map = map})->eos() == 0);
  CHECK(open({.config = both, .added = {{"<tok>", kNext}}})->n_tokens() == kNext);
}

TEST_CASE("side files that repeat tokenizer.json change nothing") {
  Json decoder, added, file = small_json();
  for (Json entry : file.at("added_tokens")) {
    const std::string id = std::to_string(entry.at("id").get<std::int64_t>());
    added[entry.at("content").get<std::string>()] = entry.at("id");
    entry.erase("id");
    decoder[id] = entry;
  }
  const Json names = {{"pad_token", "<|endoftext|>"},
                      {"unk_token", nullptr},
                      {"additional_special_tokens", Json::array({"<|im_start|>", "<|im_end|>"})},
                      {"extra_special_tokens", Json::object()}};
  Json config = names;
  config.update({{"add_bos_token", true},
                 {"add_eos_token", true},
                 {"add_prefix_space", false},
                 {"split_special_tokens", false},
                 {"clean_up_tokenization_spaces", true},
                 {"spaces_between_special_tokens", false},
                 {"legacy", true},
                 {"sp_model_kwargs", Json::object()},
                 {"tokenizer_class", "Qwen2Tokenizer"}});
  const std::string text = "a <|im_end|> b<both>  <lefty>x na\u00efvest <longest> whole <tok>";
  const Ids plain = ids({}, text);
  CHECK(ids({.config = config, .map = names, .added = added}, text) == plain);
  config["added_tokens_decoder"] = decoder;
  CHECK(ids({.config = config}, text) == plain);
  CHECK(open({.config = config})->n_tokens() == kNext);
}

TEST_CASE("side files that contradict tokenizer.json are refused by file, key and token") {
  auto decoder = [](const char* id, const Json& entry) {
    return error({.config = {{"added_tokens_decoder", {{id, entry}}}}});
  };
  CHECK_REFUSED(decoder("2509", token("<tok>")),
                "tokenizer_config.json: added_tokens_decoder: \"<tok>\" has id 2509");
  CHECK_REFUSED(decoder("1", token("<|im_end|>")), "\"<|im_end|>\" has id 1, but");
  CHECK_REFUSED(decoder("-1", token("<tok>")), "\"-1\": not an id");
  CHECK_REFUSED(decoder("2507x", token("<tok>")), "\"2507x\": not an id");
  CHECK_REFUSED(decoder("99999999999", token("<tok>")), "not an id");
  CHECK_REFUSED(decoder("2507", "<tok>"), "not an object");
  CHECK_REFUSED(decoder("2507", Json::object()), "content");
  CHECK_REFUSED(error({.added = {{"<tok>", 2600}}}), "added_tokens.json: \"<tok>\" has id 2600");
  CHECK_REFUSED(error({.added = {{"<tok>", "7"}}}), "<tok>");
  CHECK_REFUSED(error({.added = Json::array()}), "not a JSON object");
  CHECK_REFUSED(error({.config = {{"eos_token", "<nope>"}}}),
                "tokenizer_config.json: eos_token: \"<nope>\" is not a token");
  CHECK_REFUSED(error({.map = {{"bos_token", "<nope>"}}}),
                "special_tokens_map.json: bos_token: \"<nope>\" is not a token");
  CHECK_REFUSED(error({.config = {{"pad_token", 7}}}), "pad_token: not a token");
  CHECK_REFUSED(error({.config = {{"extra_special_tokens", "x"}}}),
                "extra_special_tokens: not a list");
  CHECK_REFUSED(error({.config = {{"a_token", "<a>"}, {"b_token", "<b>"}}}),
                "b_token: \"<b>\" and \"<a>\"");
}

TEST_CASE("settings that would cut a text otherwise than tokenizer.json are refused") {
  CHECK_REFUSED(error({.config = {{"split_special_tokens", true}}}), "split_special_tokens");
  CHECK_REFUSED(error({.config = {{"fast_tokenizer_files", Json::array({"tokenizer.5.json"})}}}),
                "fast_tokenizer_files");
  auto prefix = [](const char* of, bool wanted, const char* small = "gpt2") {
    return error(
        {.config = {{"tokenizer_class", of}, {"add_prefix_space", wanted}}, .small = small});
  };
  CHECK_REFUSED(prefix("GPT2Tokenizer", true), "add_prefix_space: true");
  CHECK_REFUSED(prefix("Qwen2TokenizerFast", true), "add_prefix_space: true");
  CHECK(prefix("GPT2Tokenizer", false) == "accepted");
  CHECK_REFUSED(prefix("LlamaTokenizer", false, "sentencepiece"), "add_prefix_space: false");
  CHECK(prefix("LlamaTokenizer", true, "sentencepiece") == "accepted");
  // Classes of transformers that take it from tokenizer.json.
  for (const char* of : {"TokenizersBackend", "PreTrainedTokenizerFast", "LlamaTokenizerFast"})
    CHECK(prefix(of, true) == "accepted");
  CHECK_REFUSED(error({.config = {{"add_prefix_space", true}}, .model = {{"model_type", "gpt2"}}}),
                "add_prefix_space");
}

TEST_CASE("a GGUF file gets the tokens that side files declare") {
  const Scratch folder;
  Json file = small_json();
  for (Json& entry : file["added_tokens"])  // GGUF has no words for their flags
    for (const char* flag : {"lstrip", "rstrip", "single_word", "normalized"}) entry[flag] = false;
  folder.write("tokenizer.json", file.dump());
  folder.write("special_tokens_map.json", R"({"pad_token":"<pad>"})");
  std::vector<std::string> notes;
  const auto data = gguf_tokenizer(folder.path.string(), kNext + 1, notes);
  CHECK(std::any_of(data.begin(), data.end(), [](const auto& entry) {
    return entry.first == "tokenizer.ggml.padding_token_id";
  }));
  CHECK(notes.empty());
  std::vector<std::string> short_of_one;
  gguf_tokenizer(folder.path.string(), kNext, short_of_one);
  REQUIRE(short_of_one.size() == 1);
  CHECK(short_of_one[0].find("<pad>") != std::string::npos);
}
