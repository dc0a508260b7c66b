// Reads and writes a model's config: GGUF metadata, Hugging Face's config.json.
//
// See Note [Refuse, never default] in nn/config.h.
#pragma once

#include <string>

#include "io/json_fwd.h"
#include "nn/config.h"

namespace lk {

class GgufFile;

// The config in GGUF metadata (llama, which Mistral shares, qwen2, qwen3, gemma3, gpt2). Throws
// InputError.
ModelConfig config_from_gguf(const GgufFile& file);
// What GGUF's readers assume where its keys for Gemma say nothing: every sixth layer sees
// everything, and the local ones rotate with this base.
inline constexpr std::int64_t kGemmaPattern = 6;
inline constexpr double kGemmaLocalTheta = 10000;
// What GGUF's readers take for query_scale, which has no key: the head size, but hidden size /
// heads for the model of 62 layers (27B), as in llama.cpp.
double gguf_query_scale(const ModelConfig& config);
// The config in folder/config.json as transformers 4 or 5 writes it. Throws InputError, IoError.
ModelConfig config_from_folder(const std::string& folder);
// The config in a parsed config.json; `where` names the file in messages. Throws InputError.
ModelConfig config_from_json(const Json& json, const std::string& where);
// Makes a config.json that transformers 4 and 5 read. Throws UsageError for rope factors that
// Hugging Face can't express.
Json config_to_json(const ModelConfig& config);

}  // namespace lk
