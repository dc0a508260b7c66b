// Loading a model's weights from a ModelFile to a device.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "modelfile/base_precision.h"
#include "modelfile/model_file.h"
#include "nn/config.h"
#include "nn/model_weights.h"

namespace lk {

struct LoadedModel {
  ModelConfig config;
  ModelWeights weights;
  std::string sha256;  // weights_sha256(), if LoadOptions::hash asked for it
};

// Called after each tensor: bytes (as held in memory) loaded so far, of how many, and the tensor's
// name.
using LoadProgress =
    std::function<void(std::int64_t done_bytes, std::int64_t total_bytes, const std::string& name)>;

struct ShardGroup;

struct LoadOptions {
  LoadProgress progress = {};         // not called if empty
  BaseStorage storage = {};           // default: dense
  const ShardGroup* group = nullptr;  // who holds a base in parts
  // Pack blocks for inference where the backend multiplies such; what else the storage would keep
  // in blocks is then dense.
  bool pack = false;
  // Hash the weights as they are read: later, weights_sha256() (modelfile/weight_hash.h) of what the
  // device then holds must be equal. Quantised weights are hashed as they lie in memory.
  bool hash = false;
};

// Reads all tensors of `file` into memory of the backend's device (Tag::Weights), in compute_dtype
// or as options.storage says.
//
// Every tensor that the config asks for must be there with exactly its shape, and every tensor in
// the file must be asked for (buffers aside); values must be finite. LLaMA's GGUF row order of q and
// k is undone, GPT-2's projections are transposed.
// Streams: besides the weights it holds less than 100 MiB. A layer that options.storage has wait
// elsewhere leaves the device matrix by matrix. Throws InputError naming file and
// tensor, IoError, OutOfMemoryError, UsageError as held_formats() does.
LoadedModel load_weights(Backend& backend, const ModelFile& file, DType compute_dtype,
                         const LoadOptions& options = {});

// Checks that a tied model whose file also holds a head has the same numbers in both, or it is unclear
// which model was meant (transformers would silently drop the head). load_weights() does; whoever
// writes a model from its file, without the head, has to as well. Throws InputError.
void check_tied_head(const ModelFile& file);

}  // namespace lk
