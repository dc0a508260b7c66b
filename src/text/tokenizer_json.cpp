// Reads a tokenizer from a Hugging Face folder: tokenizer.json and the files beside it. Whatever
// changes the ids and is not known here is refused by name; `truncation` and `padding` are ignored
// on purpose. Source: the tokenizers crate's serialised format, version 1.0.
#include <algorithm>
#include <limits>

#include "io/input_file.h"
#include "io/json.h"
#include "io/paths.h"
#include "tensor/error.h"
#include "text/folder_tokens.h"
#include "text/tokenizer_builder.h"
#include "text/tokenizer_json_parts.h"

namespace lk {

using namespace tokenizer_json;

namespace {

constexpr std::int64_t kMaxId = std::numeric_limits<std::int32_t>::max();

// Fills the vocabulary: each id once and none left out, whichever list of the file it comes from.
class Ids {
 public:
  // `n`: how many tokens the file lists in all, so no honest id is larger.
  Ids(TokenizerSpec& spec, std::size_t n) : spec_(spec), limit_(n) {}
  // Enters a token and says whether its id was free. Refuses a second name for an id, and an id
  // past the end.
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
    if (seen[id]) refuse(where, concat("id ", id, " appears twice"));
    seen[id] = true;
    spec.added.push_back(std::move(token));
  }
}

// Reads the settings of the model part that change ids.
void read_settings(const Json& model, const std::string& where, TokenizerSpec& spec) {
  if (const std::string type = json_string_or(model, "type", "BPE", where); type != "BPE")
    refuse(where, "\"" + type + "\" is not read; only BPE is");
  if (present(model, "dropout") && json_number(model, "dropout", where) != 0)
    refuse(where, "dropout is not supported");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (present(model, key) && !json_string(model, key, where).empty())
      refuse(where, std::string(key) + " is not supported");
  spec.byte_fallback = json_bool_or(model, "byte_fallback", false, where);
  if (spec.byte_fallback && spec.byte_level)
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
  spec.piece.assign(spec.tokens.size(), true);
  for (const AddedToken& token : spec.added)
    spec.piece[static_cast<std::size_t>(token.id)] = token.in_vocabulary;
  spec.merges.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank)
    spec.merges.push_back(read_merge(merges[rank], rank, where));
  read_settings(model, where, spec);
}

struct Folder {
  std::string path;
  bool has(const char* name) const { return exists(file(name)); }
  std::string file(const char* name) const { return path + "/" + name; }
  Json json(const char* name) const {
    Json value = has(name) ? read_json(file(name)) : Json::object();
    if (!value.is_object()) refuse(file(name), "not a JSON object");
    return value;
  }
};

// The id of the token that the folder's files call `name`; -1 if none does.
std::int32_t named_token(const FolderTokens& tokens, const char* name, const TokenizerSpec& spec) {
  const auto named = tokens.names.find(name);
  if (named == tokens.names.end()) return -1;
  const auto it = std::find(spec.tokens.begin(), spec.tokens.end(), named->second.text);
  if (it == spec.tokens.end())
    refuse(named->second.where, "\"" + named->second.text + "\" is not a token");
  return static_cast<std::int32_t>(it - spec.tokens.begin());
}

// The ids in eos_token_id of config.json or generation_config.json: a number, a list, or null.
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

bool puts_space_before(const TokenizerSpec& spec) {
  return spec.normalizer.prepends() ||
         (spec.metaspace && spec.metaspace->prepend != Metaspace::Prepend::Never);
}

// The templates called "default" and "tool_use", as transformers finds them: files, or else tokenizer_config.json's text
// or list of named texts. apply_chat_template() takes the second for chats with tools.
void read_chat_templates(const Folder& folder, const Json& config, TokenizerSpec& spec) {
  const auto read = [&](const char* name, std::string& text) {
    if (folder.has(name)) text = read_file(folder.file(name), std::size_t{1} << 20);
  };
  read("additional_chat_templates/default.jinja", spec.chat_template);
  read("chat_template.jinja", spec.chat_template);
  read("additional_chat_templates/tool_use.jinja", spec.tool_template);
  const bool own = !spec.chat_template.empty() || !spec.tool_template.empty();
  if (own || !present(config, "chat_template")) return;
  const std::string where = folder.file("tokenizer_config.json");
  const Json& value = config.at("chat_template");
  if (!value.is_array()) {
    spec.chat_template = json_string(config, "chat_template", where);
    return;
  }
  for (const Json& entry : value) {
    if (!entry.is_object()) continue;
    const std::string name = json_string(entry, "name", where);
    if (name == "default") spec.chat_template = json_string(entry, "template", where);
    if (name == "tool_use") spec.tool_template = json_string(entry, "template", where);
  }
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_folder(const std::string& path) {
  const Folder folder{path};
  TokenizerSpec spec;
  spec.where = folder.file("tokenizer.json");
  const FolderTokens tokens = read_folder_tokens(path);
  const Json& file = tokens.file;
  read_normalizer(file, spec);
  read_pre_tokenizer(file, spec);
  read_model(file, spec);
  read_decoder(file, spec);
  check_cutting(tokens.config, folder.file("tokenizer_config.json"), spec.byte_level,
                puts_space_before(spec), folder.json("config.json"));

  spec.bos = named_token(tokens, "bos_token", spec);
  spec.eos = named_token(tokens, "eos_token", spec);
  // As in transformers, config.json says what ends a generation only where the other file is missing.
  const bool own = folder.has("generation_config.json");
  for (const char* name : {"generation_config.json", "config.json"})
    for (std::int32_t id : stop_list(folder.json(name), folder.file(name))) {
      if (id >= std::ssize(spec.tokens))
        refuse(folder.file(name), concat("eos_token_id ", id, " is no token"));
      if (spec.eos < 0) spec.eos = id;
      if (!own || name == std::string_view("generation_config.json")) spec.stop_ids.push_back(id);
    }
  // transformers ignores add_bos_token and add_eos_token of tokenizer_config.json where there is a
  // tokenizer.json.
  read_post_processor(file, spec);
  read_chat_templates(folder, tokens.config, spec);
  for (const auto& [name, token] : tokens.names)
    if (name != "bos_token" && name != "eos_token")
      spec.named_tokens.emplace_back(name, token.text);
  return TokenizerBuilder::build(std::move(spec));
}

}  // namespace lk
