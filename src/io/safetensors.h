// safetensors: reader (single file and sharded folder) and durable writer.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/durable.h"
#include "io/input_file.h"
#include "io/tensor_reader.h"
#include "io/tensor_writer.h"

namespace lk {

// One .safetensors file, whose header is fully checked on opening (docs/decisions.md lists where we
// are stricter than the reference). Stored types read: F64, F32, F16, BF16.
class SafetensorsFile : public TensorReader {
 public:
  explicit SafetensorsFile(const std::string& path,
                           InputFile::Between between = InputFile::Between::Open);
  ~SafetensorsFile() override;
  const std::string& path() const override;
  std::vector<const InputFile*> files() const override;
  std::vector<std::string> names() const override;
  bool has(const std::string& name) const override;
  Shape shape(const std::string& name) const override;
  std::string stored_type(const std::string& name) const override;
  void check_readable(const std::string& name) const override;
  void read_rows(const std::string& name, std::int64_t begin, std::int64_t end,
                 float* dst) const override;
  std::optional<DType> plain_type(const std::string& name) const override;
  void read_stored(const std::string& name, std::int64_t begin, std::int64_t end,
                   std::uint8_t* dst) const override;
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Opens a Hugging Face folder's weights: model.safetensors, or model.safetensors.index.json with
// its shards. Throws InputError, IoError.
std::unique_ptr<TensorReader> open_safetensors_model(const std::string& folder);

// What quantised matrices are stored as, beside F32.
inline constexpr StorageType kStoredBytes{"U8", 1, 1}, kStoredE4m3{"F8_E4M3", 1, 1};

// Writes one file of tensors, streamed: the header first, then the tensors' bytes in the order
// given, which should be the reference writer's. Throws IoError; Error for types whose blocks
// hold several values.
class SafetensorsWriter : public TensorWriter {
 public:
  SafetensorsWriter(const std::string& path, const std::map<std::string, std::string>& metadata,
                    std::vector<EncodedTensor> tensors);
  // Puts larger types first (so that each tensor is aligned), then sorts by name.
  static void sort_as_reference(std::vector<EncodedTensor>& tensors);
  void append(const void* data, std::size_t bytes) override;
  void commit() override;

 private:
  DurableFile file_;
  std::uint64_t left_ = 0;  // bytes still to come
};

// Tensors that are written one after the other: one, or all of a quantised matrix.
using TensorGroup = std::vector<EncodedTensor>;
// One file of a model whose tensors are spread over several.
struct SafetensorsShard {
  std::string file;
  std::vector<TensorGroup> groups;  // in the reference writer's order of their first tensors
  std::vector<EncodedTensor> tensors() const;
};
std::vector<SafetensorsShard> split_into_shards(const std::vector<TensorGroup>& groups,
                                                std::uint64_t max_bytes);
// The text of model.safetensors.index.json.
std::string shard_index(const std::vector<SafetensorsShard>& shards);

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
