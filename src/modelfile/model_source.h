// ModelSource: a model's tensors as F32 in our order (modelfile/file_layout.h), row by row, whatever file
// they are in. For tools that make one file of another; load.h puts a whole model on a device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "modelfile/file_layout.h"
#include "nn/config.h"

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
  StoredTensor stored(const WeightSlot& slot) const { return layout_.find(slot); }
  // Rows [begin, end) of a matrix, whole heads for q and k, all of it where a folder has it turned
  // (GPT-2's projections); a vector is one row. A norm's gain is given as the file has it, with or
  // without its 1: adding and taking it away again would cost bits. Throws InputError, also for a
  // value that is not finite.
  void read_rows(const WeightSlot& slot, std::int64_t begin, std::int64_t end, float* dst) const;

  // Rows to read at a time, of any layout of the family: about kWeightBlockBytes as F32 and whole
  // heads, or all.
  std::int64_t block_rows(const WeightSlot& slot) const;

 private:
  std::string path_;
  ModelConfig config_;
  FileLayout layout_{};
  std::unique_ptr<TensorReader> reader_;
  const GgufFile* gguf_ = nullptr;  // reader_, if it is one
  ModelWeights unused_;             // what weight_slots() points into
  std::vector<WeightSlot> slots_;
};

}  // namespace lk
