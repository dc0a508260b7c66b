// The name that a model has on the Hugging Face hub, as far as its files tell.
#pragma once

#include <string>

namespace lk {

class ModelFile;

// Whether the text is "organisation/model" in the characters that the hub allows.
bool is_hub_name(const std::string& text);

struct HubName {
  std::string name;  // "HuggingFaceTB/SmolLM2-135M-Instruct"; empty: nothing gives one
  std::string from;  // what gave it, for messages: "general.source.repo_url"
};

// Asks, for a folder, the hub's cache that it lies in (models--ORG--NAME), then config.json's
// _name_or_path; for a GGUF file, general.source.*, then general.repo_url, then
// general.base_model.0.repo_url if general.name is no other: by gguf's docs/gguf.md that is the
// model from which this one was made, and only names the same where a conversion was all. Throws
// InputError, IoError.
HubName hub_name(const ModelFile& model);

}  // namespace lk
