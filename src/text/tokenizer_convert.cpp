#include "text/tokenizer_convert.h"

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <unordered_map>

#include "io/json.h"
#include "tensor/error.h"
#include "text/byte_alphabet.h"
#include "text/folder_tokens.h"
#include "text/gguf_token_type.h"
#include "text/sentencepiece_convert.h"
#include "text/tokenizer.h"
#include "text/tokenizer_json_parts.h"

namespace lk {

namespace {

// A pre-tokenizer: our name, GGUF's name, and its published parts in tokenizer.json.
struct Family {
  const char *name, *gguf_name;
  const char* pattern;  // pattern of a Split before ByteLevel; null: ByteLevel's own
  bool digits;          // whether Digits comes before ByteLevel
  bool nfc;
};
constexpr std::array<Family, 4> kFamilies = {{
    {"gpt2", "gpt-2", nullptr, false, false},
    {"smollm", "smollm", nullptr, true, false},
    {"llama3", "llama-bpe",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     false, false},
    {"qwen2", "qwen2",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     false, true},
}};

const Family& family_of(const Tokenizer& tokenizer, const std::string& where) {
  for (const Family& f : kFamilies)
    if (tokenizer.pre_tokenizer() == f.name) return f;
  throw InputError(concat(where, ": the tokenizer (pre-tokenizer '", tokenizer.pre_tokenizer(),
                          "') can't be converted: only sentencepiece's and byte-level BPE's "
                          "gpt2, smollm, llama3 and qwen2 can"));
}

Json added_token(std::int64_t id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

Json byte_level(bool own_pattern, bool trim_offsets) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", trim_offsets},
          {"use_regex", own_pattern}};
}

Json pre_tokenizer_json(const Family& family) {
  if (family.digits)
    return {{"type", "Sequence"},
            {"pretokenizers",
             {{{"type", "Digits"}, {"individual_digits", true}}, byte_level(true, true)}}};
  if (family.pattern == nullptr) return byte_level(true, true);
  return {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"},
             {"pattern", {{"Regex", family.pattern}}},
             {"behavior", "Isolated"},
             {"invert", false}},
            byte_level(false, false)}}};
}

// The post-processor that puts BOS and EOS around each text, as far as the tokenizer does; null if
// it adds neither.
Json post_processor_json(const Tokenizer& tokenizer, const std::vector<std::string>& tokens) {
  if (tokenizer.before_text().empty() && tokenizer.after_text().empty()) return nullptr;
  Json pair = Json::array(), single, special = Json::object();
  auto put = [&](const std::vector<std::int32_t>& ids, int sequence) {
    for (const std::int32_t id : ids) {
      const std::string& token = tokens[static_cast<std::size_t>(id)];
      pair.push_back({{"SpecialToken", {{"id", token}, {"type_id", sequence}}}});
      special[token] = {{"id", token}, {"ids", {id}}, {"tokens", {token}}};
    }
  };
  for (int sequence = 0; sequence < 2; ++sequence) {
    put(tokenizer.before_text(), sequence);
    pair.push_back({{"Sequence", {{"id", sequence == 0 ? "A" : "B"}, {"type_id", sequence}}}});
    put(tokenizer.after_text(), sequence);
    if (sequence == 0) single = pair;
  }
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", special}};
}

// What ends a generation is said in generation_config.json: tokenizer_config.json names one token.
std::string generation_config(const Tokenizer& tokenizer) {
  const std::vector<std::int32_t>& stops = tokenizer.stop_ids();
  Json j = {{"bos_token_id", nullptr}, {"eos_token_id", nullptr}, {"do_sample", false}};
  if (tokenizer.bos() >= 0) j["bos_token_id"] = tokenizer.bos();
  if (stops.size() == 1) j["eos_token_id"] = stops[0];
  if (stops.size() > 1) j["eos_token_id"] = stops;
  return j.dump(2) + "\n";
}

// Whether the tokenizer is sentencepiece's: no pre-tokenizer cuts a text.
bool is_pieces(const Tokenizer& tokenizer) { return tokenizer.pre_tokenizer() == "whole"; }

// Sets GGUF's types for the tokens that sentencepiece treats specially.
void mark_pieces(const Json& model, const std::string& path, const std::vector<std::string>& tokens,
                 std::vector<std::int32_t>& types) {
  const std::string unknown = json_string_or(model, "unk_token", "", path);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (types[i] == kNormal && fallback_byte(tokens[i]) >= 0) types[i] = kByte;
    if (!unknown.empty() && tokens[i] == unknown) types[i] = kUnknown;
  }
}

// The merges of byte-level BPE, provided that GGUF's readers will do the rest as the file asks.
std::vector<std::string> merges_of(const Tokenizer& tokenizer, const Json& file,
                                   const std::string& path) {
  const Family& family = family_of(tokenizer, path);
  const Json& model = file.at("model");
  if (json_bool_or(model, "ignore_merges", false, path) !=
      (family.gguf_name == std::string("llama-bpe")))
    throw InputError(path +
                     ": model: ignore_merges is unusual for this pre-tokenizer, and GGUF has "
                     "no words for it");
  if (family.nfc != (file.contains("normalizer") && !file.at("normalizer").is_null()))
    throw InputError(path +
                     ": normalizer: unusual for this pre-tokenizer, and GGUF has no words "
                     "for it");

  std::vector<std::string> merges;
  for (const Json& entry : model.at("merges")) {
    const auto [left, right] = tokenizer_json::read_merge(entry, merges.size(), path);
    merges.push_back(left + " " + right);
  }
  return merges;
}

// The parts of a tokenizer.json that byte-level BPE has: normalizer, pre_tokenizer, decoder, and
// model without its vocab.
Json byte_level_json(const Family& family, const GgufFile& file) {
  Json merges = Json::array();
  for (const std::string& merge : file.get_strings("tokenizer.ggml.merges")) {
    const std::size_t space = merge.find(' ');
    merges.push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
  return {{"normalizer", family.nfc ? Json{{"type", "NFC"}} : Json(nullptr)},
          {"pre_tokenizer", pre_tokenizer_json(family)},
          {"decoder", byte_level(true, true)},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", family.gguf_name == std::string("llama-bpe")},
            {"merges", std::move(merges)}}}};
}

Json pieces_json(const GgufFile& file, const std::vector<std::string>& tokens,
                 const std::vector<std::int32_t>& types) {
  const PieceScores scores{file.get_floats("tokenizer.ggml.scores"),
                           file.get_bool_or("tokenizer.ggml.add_space_prefix", true)};
  // The token of this type, or the one that is named: Gemma's is of the control type. All bytes have
  // tokens, so none is ever used.
  auto unknown = std::find(types.begin(), types.end(), kUnknown) - types.begin();
  if (unknown == std::ssize(types))
    unknown = file.get_int_or("tokenizer.ggml.unknown_token_id", -1, 0, std::ssize(types) - 1);
  PieceJson p = piece_json(
      tokens, scores, types,
      unknown < 0 ? Json(nullptr) : Json(tokens[static_cast<std::size_t>(unknown)]), file.path());
  return {{"normalizer", p.normalizer},
          {"pre_tokenizer", nullptr},
          {"decoder", p.decoder},
          {"model", p.model}};
}

// A vocabulary as GGUF has it, by id.
struct GgufTokens {
  std::vector<std::string> names;
  std::vector<std::int32_t> types;
};

// The tokens of a tokenizer.json, `vocab_size` of them: ids without a token are filled up, and added
// tokens without a row in the model (Gemma 3 has one, for images) are left out with a note.
GgufTokens tokens_of(const Json& file, const std::string& path, const Tokenizer& tokenizer,
                     std::int64_t vocab_size, std::vector<std::string>& notes) {
  const bool pieces = is_pieces(tokenizer);
  const auto n = static_cast<std::size_t>(vocab_size);
  GgufTokens t{std::vector<std::string>(n), std::vector<std::int32_t>(n, kNormal)};
  for (std::size_t i = static_cast<std::size_t>(tokenizer.n_tokens()); i < n; ++i) {
    t.names[i] = concat("[PAD", i, "]");
    t.types[i] = kUnused;
  }
  const Json& model = file.at("model");
  for (const auto& [token, id] : model.at("vocab").items()) {
    if (id >= vocab_size)
      throw InputError(concat(path, ": model: vocab: \"", token, "\" has id ",
                              id.get<std::int64_t>(), ", but the model has ", vocab_size, " rows"));
    t.names[id.get<std::size_t>()] = token;
  }
  for (const Json& entry : file.at("added_tokens")) {
    const auto id = entry.at("id").get<std::size_t>();
    const auto content = entry.at("content").get<std::string>();
    if (id >= n) {
      notes.push_back(concat("the tokenizer's token ", id, " (\"", content,
                             "\") is left out: the model has ", vocab_size, " rows"));
      continue;
    }
    for (const char* key : {"lstrip", "rstrip", "single_word"})
      if (json_bool_or(entry, key, false, path))
        throw InputError(concat(path, ": added_tokens: \"", content, "\" has ", key,
                                ", for which GGUF has no words"));
    if (pieces) continue;  // see mark_added_pieces()
    t.names[id] = content;
    t.types[id] = json_bool_or(entry, "special", false, path) ? kControl : kUserDefined;
  }
  if (pieces) {
    mark_added_pieces(file, path, tokenizer, t.names, t.types);
    mark_pieces(model, path, t.names, t.types);
  }
  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t i = 0; i < n; ++i)
    if (const auto [it, fresh] = ids.emplace(t.names[i], i); !fresh)
      throw InputError(concat(path, ": tokens ", it->second, " and ", i, " are both \"", t.names[i],
                              "\" in GGUF"));
  return t;
}

}  // namespace

GgufWriter::Metadata gguf_tokenizer(const std::string& folder, std::int64_t vocab_size,
                                    std::vector<std::string>& notes) {
  const std::string path = folder + "/tokenizer.json";
  // Reading refuses whatever we don't know of the tokenizer.
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::from_folder(folder);
  const bool pieces = is_pieces(*tokenizer);
  const tokenizer_json::FolderTokens folder_tokens = tokenizer_json::read_folder_tokens(folder);
  const Json& file = folder_tokens.file;
  GgufTokens t = tokens_of(file, path, *tokenizer, vocab_size, notes);
  GgufWriter::Metadata m;
  auto add = [&](const char* key, GgufValue value) {
    m.emplace_back(std::string("tokenizer.ggml.") + key, std::move(value));
  };
  auto add_id = [&](const char* key, std::int32_t id) {
    if (id >= 0 && id < vocab_size) add(key, gguf_u32(static_cast<std::uint32_t>(id)));
  };
  add("model", gguf_string(pieces ? "llama" : "gpt2"));
  add("pre", gguf_string(pieces ? "default" : family_of(*tokenizer, path).gguf_name));
  add("tokens", gguf_strings(t.names));
  if (pieces) {
    const PieceScores p = piece_scores(file, path, t.names, t.types);
    add("scores", gguf_floats(p.scores));
    add("add_space_prefix", gguf_bool(p.space_prefix));
  } else {
    add("merges", gguf_strings(merges_of(*tokenizer, file, path)));
  }
  add("token_type", gguf_ints(t.types));
  add_id("bos_token_id", tokenizer->bos());
  add_id("eos_token_id", tokenizer->eos());
  // GGUF has two more places for ids that end a generation.
  const char* places[] = {"eot_token_id", "eom_token_id"};
  std::size_t used = 0;
  for (std::int32_t id : tokenizer->stop_ids()) {
    if (id == tokenizer->eos() || id >= vocab_size) continue;
    if (used < std::size(places))
      add_id(places[used++], id);
    else
      notes.push_back(concat("token ", id, " (\"", tokenizer->token_text(id),
                             "\") ends a generation too, for which GGUF has no place left"));
  }
  for (auto [key, name] :
       {std::pair{"unk_token", "unknown_token_id"}, std::pair{"pad_token", "padding_token_id"}})
    if (const auto it = folder_tokens.names.find(key); it != folder_tokens.names.end())
      add_id(name, tokenizer->id_of(it->second.text));
  auto adds = [&](const std::vector<std::int32_t>& around, std::int32_t id, const char* name) {
    if (around.size() > 1 || (around.size() == 1 && around[0] != id))
      throw InputError(concat(path, ": post_processor: GGUF has words for ", name,
                              " alone at this end of a text"));
    return gguf_bool(!around.empty());
  };
  add("add_bos_token", adds(tokenizer->before_text(), tokenizer->bos(), "bos_token"));
  add("add_eos_token", adds(tokenizer->after_text(), tokenizer->eos(), "eos_token"));
  if (!tokenizer->chat_template().empty())
    m.emplace_back("tokenizer.chat_template", gguf_string(tokenizer->chat_template()));
  if (!tokenizer->tool_template().empty())
    m.emplace_back("tokenizer.chat_template.tool_use", gguf_string(tokenizer->tool_template()));
  return m;
}

std::vector<std::pair<std::string, std::string>> hf_tokenizer_files(const GgufFile& file) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::from_gguf(file);
  const bool pieces = is_pieces(*tokenizer);
  std::vector<std::string> tokens = file.get_strings("tokenizer.ggml.tokens");
  std::vector<std::int32_t> types(tokens.size(), kNormal);
  if (file.has_key("tokenizer.ggml.token_type")) types = file.get_ints("tokenizer.ggml.token_type");
  const std::set<std::int32_t> stops(tokenizer->stop_ids().begin(), tokenizer->stop_ids().end());

  // Without a space before each text, user-defined tokens are found once spaces are marked.
  const bool marked = pieces && !file.get_bool_or("tokenizer.ggml.add_space_prefix", true);
  Json vocab = Json::object(), added = Json::array(), decoder_list = Json::object();
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    if (marked && types[i] == kUserDefined) tokens[i] = with_marks(tokens[i]);
    if (vocab.contains(tokens[i]))
      throw InputError(concat(file.path(), ": tokenizer.ggml.tokens: \"", tokens[i],
                              "\" appears twice (", vocab[tokens[i]].get<std::int64_t>(), " and ",
                              i, "): tokenizer.json can't hold that"));
    vocab[tokens[i]] = i;
    const bool marker = stops.count(id) || id == tokenizer->bos() || id == tokenizer->eos();
    if (types[i] != kControl && types[i] != kUserDefined && !marker &&
        !(pieces && types[i] == kUnknown))
      continue;
    Json entry = added_token(id, tokens[i], types[i] != kUserDefined);
    entry["normalized"] = marked && types[i] == kUserDefined;
    added.push_back(entry);
    entry.erase("id");
    decoder_list[std::to_string(id)] = std::move(entry);
  }
  auto token_at = [&](std::int32_t id) {
    return id < 0 ? Json(nullptr) : Json(tokens[static_cast<std::size_t>(id)]);
  };
  Json json = {{"version", "1.0"},
               {"truncation", nullptr},
               {"padding", nullptr},
               {"added_tokens", added},
               {"post_processor", post_processor_json(*tokenizer, tokens)}};
  json.update(pieces ? pieces_json(file, tokens, types)
                     : byte_level_json(family_of(*tokenizer, file.path()), file));
  json["model"]["vocab"] = std::move(vocab);

  auto id_of = [&](const char* key) {
    const std::string name = std::string("tokenizer.ggml.") + key;
    return static_cast<std::int32_t>(file.get_int_or(name, -1, 0, std::ssize(tokens) - 1));
  };
  Json special = Json::object();
  for (auto [name, id] : {std::pair{"bos_token", tokenizer->bos()},
                          {"eos_token", tokenizer->eos()},
                          {"unk_token", id_of("unknown_token_id")},
                          {"pad_token", id_of("padding_token_id")}})
    if (id >= 0) special[name] = token_at(id);
  Json config = special;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["add_bos_token"] = !tokenizer->before_text().empty();
  config["add_eos_token"] = !tokenizer->after_text().empty();
  config["clean_up_tokenization_spaces"] = false;
  config["added_tokens_decoder"] = decoder_list;
  std::vector<std::pair<std::string, std::string>> files;
  if (!tokenizer->chat_template().empty()) {
    config["chat_template"] = tokenizer->chat_template();
    files.emplace_back("chat_template.jinja", tokenizer->chat_template());
  }
  if (!tokenizer->tool_template().empty()) {  // a file of the default would hide the list
    Json named = Json::array({{{"name", "tool_use"}, {"template", tokenizer->tool_template()}}});
    if (!files.empty())
      named.push_back({{"name", "default"}, {"template", tokenizer->chat_template()}});
    config["chat_template"] = std::move(named);
    files.clear();
  }
  files.emplace_back("tokenizer.json", json.dump() + "\n");
  files.emplace_back("tokenizer_config.json", config.dump(2) + "\n");
  files.emplace_back("special_tokens_map.json", special.dump(2) + "\n");
  files.emplace_back("generation_config.json", generation_config(*tokenizer));
  return files;
}

}  // namespace lk
