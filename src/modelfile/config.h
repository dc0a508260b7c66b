// Reads and writes a model's config: GGUF metadata, Hugging Face's config.json.
//
// See Note [Refuse, never default] in nn/config.h.
#pragma once

#include <string>

#include "io/json_fwd.h"
#include "nn/config.h"

namespace lk {

class GgufFile;

// From GGUF metadata (llama, which Mistral shares, qwen2, qwen3, gemma3, gpt2). Throws InputError.
ModelConfig config_from_gguf(const GgufFile& file);
// What GGUF's readers take where its keys for Gemma say nothing: every sixth layer sees everything,
// the local ones turn by this base.
inline constexpr std::int64_t kGemmaPattern = 6;
inline constexpr double kGemmaLocalTheta = 10000;
// And query_scale, for which there is no key: the head size, but for the model of 62 layers (27B)
// hidden size / heads, as in llama.cpp.
double gguf_query_scale(const ModelConfig& config);
// From FOLDER/config.json as transformers 4 or 5 writes it. Throws InputError, IoError.
ModelConfig config_from_folder(const std::string& folder);
// The same from parsed JSON; `where` names it in messages.
ModelConfig config_from_json(const Json& json, const std::string& where);
// A config.json that transformers 4 and 5 read. Throws UsageError for rope factors that Hugging
// Face has no words for.
Json config_to_json(const ModelConfig& config);

}  // namespace lk
