// Loading a model: a .gguf file or a Hugging Face folder -> config, frozen weights, tokenizer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nn/config.h"
#include "nn/model_weights.h"
#include "text/tokenizer.h"

namespace lk {

struct LoadedModel {
  ModelConfig config;
  ModelWeights weights;
  std::unique_ptr<Tokenizer> tokenizer;  // null after load_weights()
  std::string path;
  std::string chat_template;  // the template's text, empty if the model has none
  std::string sha256;         // weights_sha256(), if asked for
};

// What a model says of itself before any tensor is read.
struct ModelHead {
  ModelConfig config;
  std::unique_ptr<Tokenizer> tokenizer;
};
// Of a .gguf file or folder. Throws InputError, also if the tokenizer has ids beyond vocab_size.
ModelHead read_model_head(const std::string& path);

// Called after each tensor: bytes (as held in memory) loaded so far, of how many, and the tensor's
// name.
using LoadProgress =
    std::function<void(std::int64_t done_bytes, std::int64_t total_bytes, const std::string& name)>;

// How matrices are held: dense, in the compute dtype, or quantised as the file has them where the
// backend multiplies such blocks (inference only).
enum class WeightStorage : std::uint8_t { Dense, Quantised };

struct LoadOptions {
  LoadProgress progress = {};  // not called if empty
  WeightStorage storage = WeightStorage::Dense;
  // Hash the weights as they are read: later, weights_sha256() (modelfile/weight_hash.h) of what the
  // device then holds must be equal. An Error if a weight stays quantised.
  bool hash = false;
};

// `path` is a .gguf file or a folder with config.json, model*.safetensors and tokenizer.json.
//
// Every tensor that the config asks for must be there with exactly its shape, and every tensor in
// the file must be asked for (buffers of rotary frequencies aside); values must be finite. LLaMA's
// GGUF row order of q and k is undone. Weights are stored in compute_dtype (Tag::Weights), or as
// options.storage says.
// Streams: besides the weights it holds less than 100 MiB. Throws InputError naming file and
// tensor, IoError, OutOfMemoryError.
LoadedModel load_model(Backend& backend, const std::string& path, DType compute_dtype,
                       const LoadOptions& options = {});
// The same without the tokenizer, for callers that bring token ids.
LoadedModel load_weights(Backend& backend, const std::string& path, DType compute_dtype,
                         const LoadOptions& options = {});

}  // namespace lk
