// A tokenizer from a Hugging Face folder: tokenizer.json and the files beside it. Whatever changes
// the ids and is not known here is refused by name; `truncation` and `padding` are ignored on
// purpose. Source: the tokenizers crate's serialised format, version 1.0.
#include <algorithm>
#include <filesystem>
#include <limits>

#include "io/durable.h"
#include "io/json.h"
#include "tensor/error.h"
#include "text/tokenizer_builder.h"

namespace lk {

namespace {

constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr std::int64_t kMaxId = std::numeric_limits<std::int32_t>::max();

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  throw InputError(where + ": " + what);
}

bool present(const Json& object, const char* key) {
  return object.contains(key) && !object.at(key).is_null();
}

const Json& object_at(const Json& object, const char* key, const std::string& where) {
  const Json& value = json_at(object, key, where);
  if (!value.is_object()) refuse(where, std::string(key) + ": not an object");
  return value;
}

// The parts of a "Sequence", or the one part there is.
std::vector<Json> parts_of(const Json& part, const char* list, const std::string& where) {
  if (!part.is_object()) refuse(where, "not an object");
  if (json_string(part, "type", where) != "Sequence") return {part};
  const Json& parts = json_at(part, list, where);
  if (!parts.is_array()) refuse(where, std::string(list) + ": not an array");
  return parts.get<std::vector<Json>>();
}

void read_normalizer(const Json& file, TokenizerSpec& spec) {
  if (!present(file, "normalizer")) return;
  const std::string where = spec.where + ": normalizer";
  for (const Json& part : parts_of(file.at("normalizer"), "normalizers", where)) {
    const std::string type = json_string(part, "type", where);
    if (type != "NFC") refuse(where, "\"" + type + "\" is not known (NFC is)");
    spec.nfc = true;
  }
}

PreTokenizer split_pattern(const Json& split, const std::string& where) {
  const std::string behavior = json_string(split, "behavior", where);
  if (behavior != "Isolated" || json_bool_or(split, "invert", false, where))
    refuse(where, "Split with behavior \"" + behavior + "\" is not known (Isolated is)");
  const std::string pattern = json_string(object_at(split, "pattern", where), "Regex", where);
  if (pattern == kGpt2Pattern) return PreTokenizer::Gpt2;
  if (pattern == kLlama3Pattern) return PreTokenizer::Llama3;
  if (pattern == kQwen2Pattern) return PreTokenizer::Qwen2;
  refuse(where, "the pattern \"" + pattern + "\" is not one we know (gpt2's, llama3's, qwen2's)");
}

// ByteLevel; Digits, ByteLevel; or Split, ByteLevel without its own pattern.
void read_pre_tokenizer(const Json& file, TokenizerSpec& spec) {
  const std::string where = spec.where + ": pre_tokenizer";
  if (!present(file, "pre_tokenizer")) refuse(where, "missing");
  const std::vector<Json> parts = parts_of(file.at("pre_tokenizer"), "pretokenizers", where);
  auto type = [&](std::size_t i) { return json_string(parts[i], "type", where); };
  if (parts.empty() || parts.size() > 2 || type(parts.size() - 1) != "ByteLevel") {
    std::string names;
    for (std::size_t i = 0; i < parts.size(); ++i) names += (i == 0 ? "" : ", ") + type(i);
    refuse(where, "[" + names + "] is not known (ByteLevel alone, or after Digits or Split, is)");
  }
  const Json& byte_level = parts.back();
  if (json_bool_or(byte_level, "add_prefix_space", true, where))
    refuse(where, "ByteLevel with add_prefix_space is not supported");
  const bool own_pattern = json_bool_or(byte_level, "use_regex", true, where);
  if (parts.size() == 1) {
    if (!own_pattern) refuse(where, "ByteLevel without use_regex and without a Split");
    spec.pre = PreTokenizer::Gpt2;
  } else if (type(0) == "Digits") {
    if (!json_bool_or(parts[0], "individual_digits", false, where) || !own_pattern)
      refuse(where, "Digits is known with individual_digits and before a ByteLevel with use_regex");
    spec.pre = PreTokenizer::SmolLm;
  } else if (type(0) == "Split") {
    if (own_pattern) refuse(where, "Split before a ByteLevel with use_regex is not known");
    spec.pre = split_pattern(parts[0], where);
  } else {
    refuse(where, "\"" + type(0) + "\" is not known (Digits and Split are)");
  }
}

std::pair<std::string, std::string> read_merge(const Json& merge, std::size_t rank,
                                               const std::string& where) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos)
      return {text.substr(0, space), text.substr(space + 1)};
  }
  refuse(where, concat("merge ", rank, " is not two tokens"));
}

// Fills the vocabulary, each id once and none left out, whichever list of the file an id comes
// from.
class Ids {
 public:
  // `n`: how many tokens the file lists in all, so no honest id is larger.
  Ids(TokenizerSpec& spec, std::size_t n) : spec_(spec), limit_(n) {}
  // Whether the id was free. A second name for an id is refused, and an id past the end.
  bool take(std::size_t id, const std::string& token, const std::string& where) {
    if (id >= limit_) refuse(where, concat("\"", token, "\": id ", id, " leaves a gap"));
    if (id >= taken_.size()) {
      taken_.resize(id + 1);
      spec_.tokens.resize(id + 1);
    }
    if (taken_[id] && spec_.tokens[id] != token)
      refuse(where, concat("\"", token, "\" and \"", spec_.tokens[id], "\" share id ", id));
    const bool fresh = !taken_[id];
    taken_[id] = true;
    spec_.tokens[id] = token;
    return fresh;
  }
  void expect_no_gap() const {
    for (std::size_t i = 0; i < taken_.size(); ++i)
      if (!taken_[i]) refuse(spec_.where, concat("no token has id ", i, ": a gap"));
  }

 private:
  TokenizerSpec& spec_;
  std::size_t limit_;
  std::vector<bool> taken_;
};

void read_added_tokens(const Json& added, TokenizerSpec& spec, Ids& ids) {
  const std::string where = spec.where + ": added_tokens";
  std::vector<bool> seen;
  for (const Json& entry : added) {
    if (!entry.is_object()) refuse(where, "not an object");
    AddedToken token;
    token.content = json_string(entry, "content", where);
    token.id = static_cast<std::int32_t>(json_int(entry, "id", 0, kMaxId, where));
    token.special = json_bool_or(entry, "special", false, where);
    token.single_word = json_bool_or(entry, "single_word", false, where);
    token.lstrip = json_bool_or(entry, "lstrip", false, where);
    token.rstrip = json_bool_or(entry, "rstrip", false, where);
    token.normalized = json_bool_or(entry, "normalized", !token.special, where);
    const auto id = static_cast<std::size_t>(token.id);
    token.in_vocabulary = !ids.take(id, token.content, where);
    if (id >= seen.size()) seen.resize(id + 1);
    if (seen[id]) refuse(where, concat("id ", id, " is there twice"));
    seen[id] = true;
    spec.added.push_back(std::move(token));
  }
}

// Settings of the model part that change ids.
void read_settings(const Json& model, const std::string& where, TokenizerSpec& spec) {
  if (const std::string type = json_string_or(model, "type", "BPE", where); type != "BPE")
    refuse(where, "\"" + type + "\" is not read; only BPE is");
  if (present(model, "dropout") && json_number(model, "dropout", where) != 0)
    refuse(where, "dropout is not supported");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (present(model, key) && !json_string(model, key, where).empty())
      refuse(where, std::string(key) + " is not supported");
  if (json_bool_or(model, "byte_fallback", false, where))
    refuse(where, "byte_fallback is not supported: byte-level BPE needs none");
  spec.ignore_merges = json_bool_or(model, "ignore_merges", false, where);
  spec.fuse_unknown = json_bool_or(model, "fuse_unk", false, where);
  if (!present(model, "unk_token")) return;
  const std::string unknown = json_string(model, "unk_token", where);
  if (unknown.empty()) return;
  const auto it = std::find(spec.tokens.begin(), spec.tokens.end(), unknown);
  if (it == spec.tokens.end()) refuse(where, "unk_token \"" + unknown + "\" is not a token");
  spec.unknown = static_cast<std::int32_t>(it - spec.tokens.begin());
}

void read_model(const Json& file, TokenizerSpec& spec) {
  const std::string where = spec.where + ": model";
  const Json& model = object_at(file, "model", spec.where);
  const Json& vocabulary = object_at(model, "vocab", where);
  const Json& merges = json_at(model, "merges", where);
  if (!merges.is_array()) refuse(where, "merges: not an array");
  const Json& added = json_at(file, "added_tokens", spec.where);
  if (!added.is_array()) refuse(spec.where, "added_tokens: not an array");

  Ids ids(spec, vocabulary.size() + added.size());
  for (const auto& [token, id] : vocabulary.items()) {
    if (!id.is_number_integer() || id < 0 || id > kMaxId)
      refuse(where, "vocab: \"" + token + "\": not an id in 0..2^31-1");
    ids.take(id.get<std::size_t>(), token, where + ": vocab");
  }
  read_added_tokens(added, spec, ids);
  ids.expect_no_gap();
  spec.merges.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank)
    spec.merges.push_back(read_merge(merges[rank], rank, where));
  read_settings(model, where, spec);
}

void read_decoder(const Json& file, const std::string& path) {
  if (!present(file, "decoder")) return;
  const std::string where = path + ": decoder";
  for (const Json& part : parts_of(file.at("decoder"), "decoders", where))
    if (const std::string type = json_string(part, "type", where); type != "ByteLevel")
      refuse(where, "\"" + type + "\" is not known (ByteLevel is)");
}

// The token that the post-processor puts before every text, empty if none.
std::string leading_token(const Json& file, const std::string& path) {
  if (!present(file, "post_processor")) return "";
  const std::string where = path + ": post_processor";
  for (const Json& part : parts_of(file.at("post_processor"), "processors", where)) {
    const std::string type = json_string(part, "type", where);
    if (type == "ByteLevel") continue;
    if (type != "TemplateProcessing") refuse(where, "\"" + type + "\" is not known");
    const Json& single = json_at(part, "single", where);
    if (single.is_array() && !single.empty() && single[0].is_object() &&
        single[0].contains("SpecialToken"))
      return json_string(single[0].at("SpecialToken"), "id", where);
  }
  return "";
}

struct Folder {
  std::string path;
  bool has(const char* name) const { return std::filesystem::exists(file(name)); }
  std::string file(const char* name) const { return path + "/" + name; }
  Json json(const char* name) const {
    Json value = has(name) ? read_json(file(name)) : Json::object();
    if (!value.is_object()) refuse(file(name), "not a JSON object");
    return value;
  }
};

// A special token of tokenizer_config.json: "text" or {"content": "text"}; its id, -1 if null.
std::int32_t named_token(const Json& config, const char* key, const std::string& where,
                         const TokenizerSpec& spec) {
  if (!present(config, key)) return -1;
  const Json& value = config.at(key);
  const std::string text = value.is_object() ? json_string(value, "content", where + ": " + key)
                                             : json_string(config, key, where);
  for (std::size_t i = 0; i < spec.tokens.size(); ++i)
    if (spec.tokens[i] == text) return static_cast<std::int32_t>(i);
  refuse(where, std::string(key) + ": \"" + text + "\" is not a token");
}

// eos_token_id of config.json or generation_config.json: a number, a list, or null.
std::vector<std::int32_t> stop_list(const Json& config, const std::string& where) {
  std::vector<std::int32_t> ids;
  if (!present(config, "eos_token_id")) return ids;
  const Json& value = config.at("eos_token_id");
  for (const Json& id :
       value.is_array() ? value.get<std::vector<Json>>() : std::vector<Json>{value})
    ids.push_back(static_cast<std::int32_t>(
        json_int(Json{{"eos_token_id", id}}, "eos_token_id", 0, kMaxId, where)));
  return ids;
}

std::string read_chat_template(const Folder& folder, const Json& config) {
  if (folder.has("chat_template.jinja"))
    return read_file(folder.file("chat_template.jinja"), std::size_t{1} << 20);
  if (!present(config, "chat_template")) return "";
  const std::string where = folder.file("tokenizer_config.json");
  const Json& value = config.at("chat_template");
  if (!value.is_array()) return json_string(config, "chat_template", where);
  for (const Json& entry : value)
    if (entry.is_object() && json_string(entry, "name", where) == "default")
      return json_string(entry, "template", where);
  return "";
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_folder(const std::string& path) {
  const Folder folder{path};
  TokenizerSpec spec;
  spec.where = folder.file("tokenizer.json");
  const Json file = read_json(spec.where);
  if (!file.is_object()) refuse(spec.where, "not a JSON object");
  read_normalizer(file, spec);
  read_pre_tokenizer(file, spec);
  read_model(file, spec);
  read_decoder(file, spec.where);

  const Json config = folder.json("tokenizer_config.json");
  const std::string config_path = folder.file("tokenizer_config.json");
  spec.bos = named_token(config, "bos_token", config_path, spec);
  spec.eos = named_token(config, "eos_token", config_path, spec);
  for (const char* name : {"generation_config.json", "config.json"})
    for (std::int32_t id : stop_list(folder.json(name), folder.file(name))) {
      if (id >= std::ssize(spec.tokens))
        refuse(folder.file(name), concat("eos_token_id ", id, " is no token"));
      if (spec.eos < 0) spec.eos = id;
      spec.stop_ids.push_back(id);
    }
  const std::string leading = leading_token(file, spec.where);
  spec.adds_bos = leading.empty()
                      ? json_bool_or(config, "add_bos_token", false, config_path)
                      : spec.bos >= 0 && spec.tokens[static_cast<std::size_t>(spec.bos)] == leading;
  spec.chat_template = read_chat_template(folder, config);
  return TokenizerBuilder::build(std::move(spec));
}

}  // namespace lk
