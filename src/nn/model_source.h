// ModelSource: a model's tensors as F32 in Hugging Face's order, row by row, whatever file they are
// in. For tools that make one file of another; load.h puts a whole model on a device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "nn/config.h"
#include "nn/model_weights.h"

namespace lk {

class ModelSource {
 public:
  // A .gguf file or a folder. Reads no tensor, but checks that every one that the config asks for
  // is there with its shape. Throws InputError naming file and tensor.
  explicit ModelSource(const std::string& path);

  const std::string& path() const { return path_; }
  const ModelConfig& config() const { return config_; }
  const GgufFile* gguf() const { return gguf_; }  // null for a folder
  // Every tensor of the model; slots()[i].weight is null.
  const std::vector<WeightSlot>& slots() const { return slots_; }
  std::string stored_type(const WeightSlot& slot) const;  // "F32", "Q4_1", ...
  // Rows [begin, end) of a matrix, whole heads for q and k; a vector is one row. Throws InputError,
  // also for a value that is not finite.
  void read_rows(const WeightSlot& slot, std::int64_t begin, std::int64_t end, float* dst) const;

  // Rows to read at a time: about kWeightBlockBytes as F32, whole heads.
  std::int64_t block_rows(const WeightSlot& slot) const;

 private:
  std::string stored_name(const WeightSlot& slot) const;

  std::string path_;
  ModelConfig config_;
  std::unique_ptr<TensorReader> reader_;
  const GgufFile* gguf_ = nullptr;  // reader_, if it is one
  ModelWeights unused_;             // what weight_slots() points into
  std::vector<WeightSlot> slots_;
};

// The architecture by which GGUF knows this model: "llama" (which Mistral shares), "qwen2". Throws
// UsageError naming any other.
std::string gguf_architecture(const ModelConfig& config);

}  // namespace lk
