// The tokens of a Hugging Face folder: tokenizer.json together with the files beside it, which may
// declare tokens that it lacks, or declare them otherwise.
#pragma once

#include <map>
#include <string>

#include "io/json.h"

namespace lk::tokenizer_json {

// A token that a file calls by a name: "eos_token".
struct NamedToken {
  std::string text;
  std::string where;  // file and key, for messages
};

struct FolderTokens {
  Json file;    // tokenizer.json; its added_tokens are as the files beside it leave them
  Json config;  // tokenizer_config.json; an empty object if there is none
  std::map<std::string, NamedToken> names;  // by name
};

// Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and added_tokens.json, as
// Note [Tokens beside tokenizer.json] in folder_tokens.cpp says. InputError naming the file, the key
// and the token where they contradict each other.
FolderTokens read_folder_tokens(const std::string& folder);

// Refuses by name what tokenizer_config.json says of how a text is cut, where transformers would
// obey it and tokenizer.json says otherwise. `byte_level`, `prefixes`: whether tokenizer.json's pieces
// are made of bytes, and whether it puts a space before a text. `model`: config.json.
void check_cutting(const Json& config, const std::string& where, bool byte_level, bool prefixes,
                   const Json& model);

}  // namespace lk::tokenizer_json
