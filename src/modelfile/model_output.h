// ModelOutput: writes a model, tensor by tensor, as a Hugging Face folder or a GGUF file.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/gguf_write.h"
#include "io/safetensors.h"
#include "modelfile/model_file.h"

namespace lk {

struct OutputFormat {
  bool gguf = false;
  // The matrices' type, by ggml's name (ggml_encode.h); only F32, F16, BF16 for a folder. Empty: as
  // the base has them, F32 where the base is quantised (only that holds its values exactly).
  std::string type;
  std::uint64_t shard_bytes = 5'000'000'000;  // most bytes of data in one of a folder's files
};

// Gives ModelOutput the values to write, and sees what became of them. Rows are those of
// ModelFile::read_rows().
class RowPipe {
 public:
  virtual ~RowPipe() = default;
  virtual void produce(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
                       std::span<float> values) = 0;
  // Takes rows [begin, end) as a reader of the file will see them.
  virtual void stored(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
                      std::span<const float> values) = 0;
};

// Rounds values (whole rows) in place to those that `type` can store, and puts their encoding into
// `bytes`. Throws NonFiniteError naming `what` if the type can't hold a value.
void round_to(const GgmlEncoder& type, std::span<float> values, std::vector<std::uint8_t>& bytes,
              const std::string& what);

class ModelOutput {
 public:
  // Plans: nothing is written. Throws UsageError for a format that can't hold the model and
  // InputError for a tokenizer that can't be converted.
  ModelOutput(const ModelFile& base, const OutputFormat& format);

  // The bytes that write() will need on the disk, to within a few KiB.
  std::uint64_t bytes() const { return bytes_; }
  // The type of the matrices that adapters touch.
  const GgmlEncoder& type() const { return *type_; }
  // Messages for people: which tensors are not of the type asked for, and why.
  const std::vector<std::string>& notes() const { return notes_; }
  // Writes the model, each file of it where `path_of` its name says. Holds two blocks of rows (16 MiB each, a matrix of GPT-2 whole) and what the
  // pipe holds. Throws IoError, NonFiniteError.
  using PathOf = std::function<std::string(const std::string& name)>;
  void write(const PathOf& path_of, RowPipe& pipe) const;

 private:
  const GgmlEncoder* choose_type(const WeightSlot& slot) const;
  void plan_folder(const OutputFormat& format);
  void plan_gguf();
  void write_tensor(TensorWriter& file, const EncodedTensor& tensor, RowPipe& pipe) const;

  const ModelFile& base_;
  bool gguf_;
  FileLayout layout_;                    // the layout that is written
  const GgmlEncoder* wanted_ = nullptr;  // null: as the base has them
  const GgmlEncoder* type_ = nullptr;
  std::vector<std::string> notes_;
  std::map<std::string, const WeightSlot*> slots_;          // by the name that is written
  std::map<std::string, std::vector<float>> constants_;     // tensors that are no weights
  std::vector<SafetensorsShard> shards_;                    // a folder's
  std::vector<EncodedTensor> tensors_;                      // a GGUF file's
  GgufWriter::Metadata metadata_;                           // a GGUF file's
  std::vector<std::pair<std::string, std::string>> files_;  // beside the shards: name, content
  std::uint64_t bytes_ = 0;
};

}  // namespace lk
