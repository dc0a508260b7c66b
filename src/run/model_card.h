// README.md of an adapter's folder: what the adapter is, how it was made, how to load it.
#pragma once

#include <string>

#include "run/finetune.h"

namespace lk {

// What a card says besides the settings and the result.
struct CardFacts {
  std::string base_model;  // a name on the hub, or the path of the model
  std::string base_sha256, dtype, device;
  std::string data_format;
  std::int64_t rows = 0, supervised_tokens = 0;
  std::vector<std::pair<std::string, std::string>> method = {};  // Method::facts()
  std::string use_flags = {};  // of `generate`: use_flags() of run/adapter_use.h
};

// The card as Markdown, with the front matter that Hugging Face's hub reads.
std::string model_card(const FinetuneSettings& settings, const FinetuneResult& result,
                       const CardFacts& facts);

}  // namespace lk
