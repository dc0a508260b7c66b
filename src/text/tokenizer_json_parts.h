// Reads the parts of a tokenizer.json around its model: what comes before and after the byte pairs.
#pragma once

#include <string>
#include <utility>

#include "io/json.h"
#include "text/tokenizer_builder.h"

namespace lk::tokenizer_json {

[[noreturn]] void refuse(const std::string& where, const std::string& what);
bool present(const Json& object, const char* key);  // whether it is there, and not null
const Json& object_at(const Json& object, const char* key, const std::string& where);

// Each of these reads its part of the file into the spec; InputError naming what is not known. The
// pre-tokenizer, which says whether the model is byte-level, is read after the normalizer.
void read_normalizer(const Json& file, TokenizerSpec& spec);
void read_pre_tokenizer(const Json& file, TokenizerSpec& spec);
void read_decoder(const Json& file, TokenizerSpec& spec);

// Reads a merge, written as two strings or as one with a space between.
std::pair<std::string, std::string> read_merge(const Json& entry, std::size_t rank,
                                               const std::string& where);

// Reads what the post-processor puts around each text into spec.before and spec.after. The
// vocabulary has been read.
void read_post_processor(const Json& file, TokenizerSpec& spec);

}  // namespace lk::tokenizer_json
