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
#include "modelfile/type_choice.h"

namespace lk {

struct OutputFormat {
  bool gguf = false;
  // The matrices' type, in capitals or not: see type_choice.h. Empty: as the base has them, F32
  // where the base is quantised (only that holds its values exactly).
  std::string type;
  std::uint64_t shard_bytes = 5'000'000'000;  // most bytes of data in one of a folder's files
};

// Gives ModelOutput the values to write, and sees what became of them. Rows are those of
// ModelFile::read_rows(). A matrix that is quantised as a whole is produced twice: for its scales,
// and again, block by block, before each stored().
class RowPipe {
 public:
  virtual ~RowPipe() = default;
  virtual void produce(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
                       std::span<float> values) = 0;
  // Takes rows [begin, end) as a reader of the file will see them.
  virtual void stored(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
                      std::span<const float> values) = 0;
};

// Rounds finite values (whole rows) in place to those that `type` can store, and puts their encoding
// into `bytes`. Returns whether the type can hold them all.
[[nodiscard]] bool round_to(const GgmlEncoder& type, std::span<float> values,
                            std::vector<std::uint8_t>& bytes);

class ModelOutput {
 public:
  // Plans: nothing is written. Throws UsageError for a format that can't hold the model and
  // InputError for a tokenizer that can't be converted.
  ModelOutput(const ModelFile& base, const OutputFormat& format);

  // The bytes that write() will need on the disk, to within a few KiB.
  std::uint64_t bytes() const { return bytes_; }
  const TypeChoice& type() const { return type_; }
  // Messages for people: which tensors are not of the type asked for, and why.
  const std::vector<std::string>& notes() const { return notes_; }
  // Writes the model, each file of it where `path_of` its name says. Holds two blocks of rows (16 MiB
  // each, a matrix of GPT-2 whole), with nf4, fp4 and fp8 the codes of one matrix, and what the pipe
  // holds. Throws IoError; InputError naming the tensor for a value that is not finite; UsageError
  // naming it for one that the type can't hold.
  using PathOf = std::function<std::string(const std::string& name)>;
  void write(const PathOf& path_of, RowPipe& pipe) const;

 private:
  void plan_folder(std::uint64_t shard_bytes);
  void plan_gguf();
  void write_tensor(TensorWriter& file, const EncodedTensor& tensor, RowPipe& pipe) const;
  void write_quantised(TensorWriter& file, const WeightSlot& slot, RowPipe& pipe) const;

  const ModelFile& base_;
  bool gguf_;
  FileLayout layout_;  // the layout that is written
  TypeChoice type_;
  std::vector<std::string> notes_;
  std::map<std::string, const WeightSlot*> slots_;          // by the first name that is written
  std::map<std::string, std::vector<float>> constants_;     // tensors that are no weights
  std::vector<SafetensorsShard> shards_;                    // a folder's
  std::vector<EncodedTensor> tensors_;                      // a GGUF file's
  GgufWriter::Metadata metadata_;                           // a GGUF file's
  std::vector<std::pair<std::string, std::string>> files_;  // beside the shards: name, content
  std::uint64_t bytes_ = 0;
};

}  // namespace lk
