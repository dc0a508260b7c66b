// Converts tokenizers from one file format into the other. What the other format can't express is
// refused by name.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "io/gguf.h"
#include "io/gguf_write.h"

namespace lk {

// GGUF's tokenizer.* metadata for the tokenizer of `folder`. Ids from its last to vocab_size are
// "[PAD i]", unused, as llama.cpp's own converter fills them. Added tokens from vocab_size on are
// left out; `notes` gets a message for each, and for each id that ends a generation and has no
// place. Throws InputError for a tokenizer that GGUF's "gpt2" and "llama" models can't express.
GgufWriter::Metadata gguf_tokenizer(const std::string& folder, std::int64_t vocab_size,
                                    std::vector<std::string>& notes);

// Name and content of the files that a folder has for the tokenizer of a GGUF file: tokenizer.json,
// tokenizer_config.json, special_tokens_map.json, generation_config.json with all ids that end a
// generation and, if the model has a template, chat_template.jinja. Throws InputError.
std::vector<std::pair<std::string, std::string>> hf_tokenizer_files(const GgufFile& file);

}  // namespace lk
