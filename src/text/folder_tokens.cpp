// Note [Tokens beside tokenizer.json]. What transformers 5 makes of a folder's tokens
// (PreTrainedTokenizerBase._from_pretrained and TokenizersBackend.__init__), and so do we:
//
//   tokenizer_config.json    tokens by id, with their flags (added_tokens_decoder); tokens by name
//                            (eos_token, pad_token, any key that ends in _token); and others, in
//                            extra_special_tokens or else additional_special_tokens.
//   special_tokens_map.json  the same names and lists; they replace those of tokenizer_config.json.
//   added_tokens.json        tokens with their ids.
//
// The last two are read only if there is no added_tokens_decoder. A token that tokenizer.json has
// keeps its id and gets the flags of added_tokens_decoder. Another is added: under its own id if it
// stands in the vocabulary, and else under the next free one. So an id that a file states for a token
// decides nothing: one that is not the token's is refused. A bos_token or eos_token without an id
// anywhere is refused too: it is used, and more likely misspelt than new.
#include "text/folder_tokens.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <unordered_map>
#include <vector>

#include "io/paths.h"
#include "tensor/error.h"
#include "text/added_tokens.h"
#include "text/tokenizer_json_parts.h"

namespace lk::tokenizer_json {

namespace {

constexpr std::int64_t kMaxId = std::numeric_limits<std::int32_t>::max();
constexpr std::array kNames = {"bos_token", "eos_token", "unk_token", "sep_token",
                               "pad_token", "cls_token", "mask_token"};

bool is_standard(const std::string& name) {
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end();
}

Json read_if_there(const std::string& path) {
  Json value = exists(path) ? read_json(path) : Json::object();
  if (!value.is_object()) refuse(path, "not a JSON object");
  return value;
}

// A token as a side file writes it: "text", or {"content": "text", "lstrip": ..., ...}.
AddedToken read_token(const Json& value, bool special, const std::string& where) {
  AddedToken token;
  token.special = special;
  if (!value.is_object()) {
    if (!value.is_string()) refuse(where, "not a token");
    token.content = value.get<std::string>();
    return token;
  }
  token.content = json_string(value, "content", where);
  token.special = json_bool_or(value, "special", special, where);
  token.single_word = json_bool_or(value, "single_word", false, where);
  token.lstrip = json_bool_or(value, "lstrip", false, where);
  token.rstrip = json_bool_or(value, "rstrip", false, where);
  token.normalized = json_bool_or(value, "normalized", !token.special, where);
  return token;
}

struct Declared {
  AddedToken token;
  std::string where;
};

std::string quoted(const std::string& text) { return "\"" + text + "\""; }

// What the side files declare.
class SideFiles {
 public:
  std::vector<Declared> by_id;  // in the order of ids
  bool with_flags = false;      // by_id says how tokens are found that tokenizer.json has too
  std::map<std::string, Declared> names;
  std::vector<Declared> others;

  SideFiles(const std::string& folder, const Json& config) {
    const std::string path = folder + "/tokenizer_config.json";
    read_names(config, false, path);
    const bool additional = present(config, "additional_special_tokens") && !lists_others(config);
    if (additional)
      read_others(config.at("additional_special_tokens"), path + ": additional_special_tokens");
    if (config.contains("added_tokens_decoder")) {
      read_decoder(config, path);
    } else {
      read_map(folder + "/special_tokens_map.json", additional || lists_others(config));
      read_added(folder + "/added_tokens.json");
    }
    std::stable_sort(by_id.begin(), by_id.end(),
                     [](const Declared& a, const Declared& b) { return a.token.id < b.token.id; });
  }

  bool named(const std::string& text) const {
    return std::any_of(names.begin(), names.end(),
                       [&](const auto& name) { return name.second.token.content == text; });
  }

 private:
  // Whether extra_special_tokens is a list, which goes before additional_special_tokens.
  static bool lists_others(const Json& object) {
    return present(object, "extra_special_tokens") &&
           !object.at("extra_special_tokens").is_object() &&
           !object.at("extra_special_tokens").empty();
  }

  // Every key that ends in _token, and the lists of others, which may be names too.
  void read_names(const Json& object, bool special, const std::string& path) {
    for (const auto& [key, value] : object.items()) {
      if (!key.ends_with("_token")) continue;
      const std::string where = path + ": " + key;
      if (value.is_null())
        names.erase(key);
      else if (value.is_string() || value.is_object())
        names.insert_or_assign(key, Declared{read_token(value, special, where), where});
      else if (is_standard(key))
        refuse(where, "not a token");
    }
    for (const char* key : {"model_specific_special_tokens", "extra_special_tokens"}) {
      if (!present(object, key)) continue;
      const std::string where = path + ": " + key;
      if (object.at(key).is_object()) {
        for (const auto& [name, value] : object.at(key).items())
          names.insert_or_assign(name,
                                 Declared{read_token(value, true, where), where + ": " + name});
      } else {
        read_others(object.at(key), where);
      }
    }
  }

  void read_others(const Json& list, const std::string& where) {
    if (!list.is_array()) refuse(where, "not a list of tokens");
    for (const Json& value : list) others.push_back({read_token(value, true, where), where});
  }

  void read_decoder(const Json& config, const std::string& path) {
    with_flags = true;
    const std::string where = path + ": added_tokens_decoder";
    for (const auto& [key, value] : object_at(config, "added_tokens_decoder", path).items()) {
      if (!value.is_object()) refuse(where, quoted(key) + ": not an object");
      Declared declared{read_token(value, false, where), where};
      const char* end = key.data() + key.size();
      const auto [stop, error] = std::from_chars(key.data(), end, declared.token.id);
      if (error != std::errc() || stop != end || declared.token.id < 0)
        refuse(where, quoted(key) + ": not an id in 0..2^31-1");
      by_id.push_back(std::move(declared));
    }
  }

  void read_map(const std::string& path, bool others_are_listed) {
    const Json map = read_if_there(path);
    read_names(map, true, path);
    if (present(map, "additional_special_tokens") && !others_are_listed && !lists_others(map))
      read_others(map.at("additional_special_tokens"), path + ": additional_special_tokens");
  }

  void read_added(const std::string& path) {
    const Json list = read_if_there(path);
    for (const auto& [text, id] : list.items()) {
      AddedToken token;
      token.content = text;
      token.id = static_cast<std::int32_t>(json_int(list, text, 0, kMaxId, path));
      token.special =
          std::any_of(others.begin(), others.end(),
                      [&](const Declared& other) { return other.token.content == text; }) ||
          std::any_of(kNames.begin(), kNames.end(), [&](const char* name) {
            const auto it = names.find(name);
            return it != names.end() && it->second.token.content == text;
          });
      token.normalized = !token.special;
      by_id.push_back({std::move(token), path});
    }
  }
};

// Enters declared tokens into the added_tokens of a tokenizer.json.
class Entries {
 public:
  explicit Entries(Json& file, const std::string& where)
      : vocabulary_(object_at(object_at(file, "model", where), "vocab", where + ": model")),
        where_(where) {
    json_at(file, "added_tokens", where);
    list_ = &file["added_tokens"];
    if (!list_->is_array()) refuse(where, "added_tokens: not an array");
    next_ = static_cast<std::int64_t>(vocabulary_.size());
    for (std::size_t i = 0; i < list_->size(); ++i) {
      if (!(*list_)[i].is_object()) refuse(where + ": added_tokens", "not an object");
      const std::string text = json_string((*list_)[i], "content", where + ": added_tokens");
      places_.emplace(text, i);
      next_ += !vocabulary_.contains(text);
    }
  }

  bool has(const std::string& text) const { return places_.count(text) > 0; }
  bool in_vocabulary(const std::string& text) const { return vocabulary_.contains(text); }

  // Adds a token that is not there yet.
  void add(const Declared& declared) {
    AddedToken token = declared.token;
    const bool old = in_vocabulary(token.content);
    const std::int64_t id =
        old ? json_int(vocabulary_, token.content, 0, kMaxId, where_ + ": model: vocab") : next_++;
    if (token.id >= 0) expect_id(declared, id, old ? "says" : "lacks it, and its next id is");
    places_.emplace(token.content, list_->size());
    list_->push_back({{"id", id}, {"content", token.content}});
    set_flags(list_->back(), token);
  }

  // Gives a token that is there the declared flags, if they are to count; `named`: a file has a name
  // for it, which makes what is changed special.
  void change(const Declared& declared, bool flags_count, bool named) {
    Json& entry = (*list_)[places_.at(declared.token.content)];
    const std::string where = where_ + ": added_tokens";
    expect_id(declared, json_int(entry, "id", 0, kMaxId, where), "says");
    const AddedToken old = read_token(entry, false, where);
    const AddedToken& token = declared.token;
    if (!flags_count || (old.special == token.special && old.single_word == token.single_word &&
                         old.lstrip == token.lstrip && old.rstrip == token.rstrip &&
                         old.normalized == token.normalized))
      return;
    set_flags(entry, token);
    if (named) entry["special"] = true;
  }

 private:
  void expect_id(const Declared& declared, std::int64_t id, const char* says) const {
    if (declared.token.id != id)
      refuse(declared.where, concat(quoted(declared.token.content), " has id ", declared.token.id,
                                    ", but ", where_, " ", says, " ", id));
  }
  static void set_flags(Json& entry, const AddedToken& token) {
    entry["special"] = token.special;
    entry["single_word"] = token.single_word;
    entry["lstrip"] = token.lstrip;
    entry["rstrip"] = token.rstrip;
    entry["normalized"] = token.normalized;
  }

  const Json& vocabulary_;
  std::string where_;
  Json* list_ = nullptr;
  std::unordered_map<std::string, std::size_t> places_;  // by content: where in the list
  std::int64_t next_ = 0;                                // the id of a token that has none yet
};

void enter_names(const SideFiles& side, Entries& entries) {
  std::vector<std::string> ordered(kNames.begin(), kNames.end());
  for (const auto& [name, declared] : side.names)
    if (!is_standard(name)) ordered.push_back(name);
  std::string unordered;  // a new token whose id follows the order of the file's keys
  for (const std::string& name : ordered) {
    const auto it = side.names.find(name);
    if (it == side.names.end()) continue;
    Declared declared = it->second;
    const std::string& text = declared.token.content;
    if (entries.has(text)) continue;
    const bool is_new = !entries.in_vocabulary(text);
    if (is_new && (name == "bos_token" || name == "eos_token"))
      refuse(declared.where, quoted(text) + " is not a token");
    if (text.empty()) continue;
    if (is_new && !is_standard(name)) {
      if (!unordered.empty())
        refuse(declared.where,
               concat(quoted(text), " and ", quoted(unordered),
                      " are no tokens of tokenizer.json, and no file says their ids: "
                      "list them in added_tokens_decoder"));
      unordered = text;
    }
    declared.token.special = true;
    entries.add(declared);
  }
}

void reconcile(Json& file, const std::string& path, const SideFiles& side) {
  if (side.by_id.empty() && side.names.empty() && side.others.empty()) return;
  Entries entries(file, path);
  for (const Declared& declared : side.by_id) {
    const bool named = side.named(declared.token.content);
    if (entries.has(declared.token.content)) {
      entries.change(declared, side.with_flags, named);
    } else if (!declared.token.content.empty()) {
      Declared added = declared;
      added.token.special |= named;
      entries.add(added);
    }
  }
  enter_names(side, entries);
  for (const Declared& declared : side.others)
    if (!declared.token.content.empty() && !entries.has(declared.token.content))
      entries.add(declared);
}

}  // namespace

FolderTokens read_folder_tokens(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  FolderTokens tokens{read_json(path), read_if_there(folder + "/tokenizer_config.json"), {}};
  if (!tokens.file.is_object()) refuse(path, "not a JSON object");
  const SideFiles side(folder, tokens.config);
  reconcile(tokens.file, path, side);
  for (const auto& [name, declared] : side.names)
    tokens.names.emplace(name, NamedToken{declared.token.content, declared.where});
  return tokens;
}

void check_cutting(const Json& config, const std::string& where, bool byte_level, bool prefixes,
                   const Json& model) {
  if (json_bool_or(config, "split_special_tokens", false, where))
    refuse(where, "split_special_tokens: special tokens in a text are never split here");
  if (present(config, "fast_tokenizer_files"))
    for (const Json& name : config.at("fast_tokenizer_files"))
      if (name != "tokenizer.json")
        refuse(where, "fast_tokenizer_files: names another file than tokenizer.json");
  if (!present(config, "add_prefix_space")) return;
  const bool wanted = json_bool_or(config, "add_prefix_space", false, where);
  // transformers' own classes make the part that adds the space anew, by this key; its general class
  // takes it from tokenizer.json.
  std::string of = json_string_or(config, "tokenizer_class", "", where);
  const std::string family = json_string_or(model, "model_type", "", "config.json");
  if (of.ends_with("Fast")) of.resize(of.size() - 4);
  if (of.empty() && family == "gpt2") of = "GPT2Tokenizer";
  if (family == "qwen2" || (of.empty() && family == "qwen3")) of = "Qwen2Tokenizer";
  const bool obeyed = !of.empty() && of != "TokenizersBackend" && of != "PreTrainedTokenizer" &&
                      of != "GemmaTokenizer" && !(of == "LlamaTokenizer" && byte_level);
  if (obeyed && wanted != prefixes)
    refuse(where, concat("add_prefix_space: ", wanted ? "true" : "false", ", but tokenizer.json ",
                         prefixes ? "puts a" : "puts no", " space before a text"));
}

}  // namespace lk::tokenizer_json
