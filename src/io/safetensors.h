// safetensors: reader (single file and sharded folder) and durable writer.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/tensor_reader.h"

namespace lk {

// One .safetensors file, header fully checked on open (docs/decisions.md lists where we are
// stricter than the reference). Stored types read: F64, F32, F16, BF16.
class SafetensorsFile : public TensorReader {
 public:
  explicit SafetensorsFile(const std::string& path);
  ~SafetensorsFile() override;
  const std::string& path() const override;
  std::vector<std::string> names() const override;
  bool has(const std::string& name) const override;
  Shape shape(const std::string& name) const override;
  std::string stored_type(const std::string& name) const override;
  void read_rows(const std::string& name, std::int64_t begin, std::int64_t end,
                 float* dst) const override;
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A Hugging Face folder's weights: model.safetensors, or model.safetensors.index.json with its
// shards.
std::unique_ptr<TensorReader> open_safetensors_model(const std::string& folder);

struct SafetensorsEntry {
  std::string name;
  Shape shape;
  std::vector<float> values;  // written as F32
};
// Writes F32 tensors durably (temp file, fsync, re-read and compare, rename, fsync of the folder),
// in the order and alignment of the reference writer. Throws IoError; refuses non-finite values
// (NonFiniteError naming the tensor).
void write_safetensors(const std::string& path, const std::vector<SafetensorsEntry>& tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace lk
