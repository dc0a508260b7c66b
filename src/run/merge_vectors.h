// merge for the methods that train vectors: (IA)3 scales rows or columns of matrices, and biases add to
// biases. Nothing is lost but what the file's type rounds away.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lora/merge.h"

namespace lk {

struct VectorMergeSettings {
  std::string model = {}, adapter = {};  // the base, and a folder that open_method() reads
  std::string out = {};                  // a folder, or a file if it ends in ".gguf"
  std::string type = {};                 // as in MergeSettings (lora/merge.h)
  bool other_base = false;               // accept vectors that were trained on other weights
  std::uint64_t shard_bytes = 5'000'000'000;
  BaseStorage storage = {BasePrecision::Auto, {}};  // as in MergeSettings
  bool verify = true;                               // as in MergeSettings
};

struct VectorMergeResult : LogitCheck {
  std::string type;  // of the matrices, named as in ggml
  std::uint64_t bytes = 0;
  std::int64_t changed = 0;  // tensors
  std::vector<std::string> warnings = {};
  std::string remark = {};  // as HeldBase has it
};

// Whether a trained method is one that merge_vectors() merges. Throws UsageError, saying why, for a
// method that no merge can do (bottleneck adapters, virtual tokens), and returns false for LoRA's own.
bool merges_as_vectors(const std::string& method);

// Writes the model with the vectors in it. Everything is checked before anything is written: throws
// UsageError, InputError (a vector for no tensor of the model, new biases on projections that have
// none, an adapter of another base), IoError; for a value that can't be written as merge() does.
VectorMergeResult merge_vectors(const VectorMergeSettings& settings, MergeListener& listener);

}  // namespace lk
