// The tiny models of golden/models/, for tests that run over all families, and copies of them with
// a tokenizer, on which every program can run.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "cpu/cpu_backend.h"
#include "harness.h"
#include "hostile.h"
#include "io/durable.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "lora/adapter_io.h"
#include "modelfile/fingerprint.h"
#include "modelfile/load.h"
#include "tiny_model.h"

namespace lk::test {

// The models that transformers' classes made, with odd and even head counts. Windows are 33 to 50
// tokens.
inline const std::vector<std::string> kFamilyModels = {
    "tied_gqa",  "mistral_linear", "mistral_window", "qwen2", "qwen2_window", "qwen3",
    "qwen3_odd", "gemma3",         "gemma3_odd",     "gpt2",  "gpt2_odd"};

inline std::string family_model(const std::string& name) {
  return std::string(LK_TEST_DATA) + "/golden/models/" + name;
}

// The model (one file, F32) with the byte-level tokenizer of golden/peft/tiny, whose 300 tokens
// need more rows of embedding and head. `edit` may change config.json.
inline std::string runnable_model(const ScratchFolder& scratch, const std::string& name,
                                  const std::function<void(Json&)>& edit = {}) {
  constexpr std::int64_t kTokens = 300;
  const std::string from = family_model(name), to = scratch.file(name),
                    tokenizer = std::string(LK_TEST_DATA) + "/golden/peft/tiny/";
  std::filesystem::create_directories(to);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
    std::filesystem::copy(tokenizer + file, to + "/" + file);
  Json config = read_json(from + "/config.json");
  config["vocab_size"] = kTokens;
  config["dtype"] = "float32";
  if (edit) edit(config);
  write_file_durably(to + "/config.json", config.dump(2) + "\n");
  auto reader = open_safetensors_model(from);
  std::vector<SafetensorsEntry> tensors;
  for (const std::string& tensor : reader->names()) {
    Shape shape = reader->shape(tensor);
    SafetensorsEntry e{tensor, shape, std::vector<float>(static_cast<std::size_t>(shape.numel()))};
    reader->read_rows(tensor, 0, shape.rows(), e.values.data());
    if (tensor.ends_with("embed_tokens.weight") || tensor.ends_with("wte.weight") ||
        tensor.ends_with("lm_head.weight")) {
      e.shape = Shape{kTokens, shape[1]};
      const double scale = 1 / std::sqrt(static_cast<double>(shape[1]));
      for (double v : random_values((kTokens - shape[0]) * shape[1], 5, scale))
        e.values.push_back(static_cast<float>(v));
    }
    tensors.push_back(std::move(e));
  }
  write_safetensors(to + "/model.safetensors", tensors, {{"format", "pt"}});
  return to;
}

// Writes an adapter for the model at `path`, with random numbers in every B, and returns its
// folder.
inline std::string random_adapter(const ScratchFolder& scratch, const std::string& path,
                                  const std::string& name = "adapter") {
  auto backend = make_cpu_backend();
  const ModelFile file(path);
  LoadedModel loaded = load_weights(*backend, file, DType::F32);
  Transformer model(*backend, loaded.config, std::move(loaded.weights), DType::F32, 64);
  Adapter adapter(model, tiny_lora());
  randomize_b(adapter, 17, 0.3);
  std::filesystem::create_directories(scratch.file(name));
  save_adapter(scratch.file(name), adapter, path, model_fingerprint(file));
  return scratch.file(name);
}

}  // namespace lk::test
