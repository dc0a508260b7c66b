// Tokenizers from one file format into the other; what has no words there is refused by name.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "io/gguf.h"
#include "io/gguf_write.h"

namespace lk {

// The tokenizer.* metadata of GGUF for FOLDER's tokenizer. Ids from its last to vocab_size are
// "[PAD i]", unused, as llama.cpp's own converter fills them. Throws InputError for a tokenizer
// that GGUF's "gpt2" and "llama" models can't express.
GgufWriter::Metadata gguf_tokenizer(const std::string& folder, std::int64_t vocab_size);

// tokenizer.json, tokenizer_config.json, special_tokens_map.json and, if there is one,
// chat_template.jinja for the tokenizer of a GGUF file: name and content.
std::vector<std::pair<std::string, std::string>> hf_tokenizer_files(const GgufFile& file);

}  // namespace lk
