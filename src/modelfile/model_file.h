// ModelFile: a model on disk, a .gguf file or a Hugging Face folder, opened once. Loading, merging,
// exporting, hashing and planning all ask this object; only it knows which of the two it is.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "io/gguf.h"
#include "modelfile/file_layout.h"
#include "modelfile/stored_quantised.h"
#include "nn/config.h"

namespace lk {

class Tokenizer;

// Any number of threads may read one ModelFile at once.
class ModelFile {
 public:
  // `path`: a .gguf file, or a folder with config.json, model*.safetensors and tokenizer.json.
  // Parses the config. A folder's tensors are opened when they are first asked for: a plan needs
  // none. Throws InputError, IoError.
  explicit ModelFile(const std::string& path);
  ~ModelFile();
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;

  const std::string& path() const { return path_; }
  const ModelConfig& config() const { return config_; }
  // Where the config was found, for messages: "config.json" or "its metadata".
  const char* config_name() const { return gguf_ ? "its metadata" : "config.json"; }
  // The GGUF file, null for a folder.
  const GgufFile* gguf() const { return gguf_.get(); }
  // The model's tokenizer, which brings the chat template. It may have more tokens than the
  // embedding has rows, and refuses texts with one of those. Throws InputError.
  std::unique_ptr<Tokenizer> read_tokenizer() const;

  // The open files that hold the weights: the GGUF file, model.safetensors, or the shards by name.
  std::vector<const InputFile*> weight_files() const;
  // Name and content of a folder's other files that belong to the model: its configs and what makes
  // its tokenizer, config.json first; `of_codes`: and what alone says how codes are to be read. A name may have a
  // folder before it: "additional_chat_templates/tool_use.jinja". Empty for a GGUF file. Throws InputError, IoError.
  std::vector<std::pair<std::string, std::string>> side_files(bool of_codes = true) const;

  // ---- tensors. The first question about them checks that every tensor that the config asks for
  // is there with its shape, in a type that is read, and that there is no other: InputError naming
  // file and tensor, IoError.

  // All of the model's tensors, in the order of weight_slots(); slots()[i].weight is null.
  const std::vector<WeightSlot>& slots() const { return slots_; }
  // The tensors by the file's own names.
  const TensorReader& reader() const;
  // Whether files may hold a tensor `name` that is no weight: rotary frequencies, which are read
  // with the config or recomputed, the causal masks of GPT-2, and the scales of a quantised cache.
  bool is_buffer(const std::string& name) const;
  bool is_zero_bias(const std::string& name) const;  // of GPTQ
  // How the file holds a tensor: its name, shape and order there.
  StoredTensor stored(const WeightSlot& slot) const;
  std::string stored_type(const WeightSlot& slot) const;  // "F32", "Q4_1", ...
  // The type of the blocks that make up the rows of a matrix, null if it is not quantised.
  const GgmlType* block_type(const WeightSlot& slot) const;
  // The format in which the file holds a matrix: blocks, or what a pre-quantised folder has. Nothing
  // if it is dense.
  std::optional<QuantisedFormat> quantised_format(const WeightSlot& slot) const;
  // Whether any matrix is quantised.
  bool is_quantised() const;
  // What config alone says of how codes are to be read, "gptq_v2": the same tensors with other words
  // beside them are another model. Empty where nothing does, and for GPTQ's first version, which
  // files without such words are of.
  std::string codes_format() const;
  // Whether a tensor of the file belongs to a quantised matrix: codes, scales and what goes with them.
  bool is_part(const std::string& name) const;
  // Whether the folder of a tied model may hold the head too, as kFolderHead: load_weights() checks
  // that its numbers are the table's. Alone it is the table.
  bool may_repeat_head() const;
  // Rows to read at a time, of any layout of the family: about kWeightBlockBytes as F32 and whole
  // heads, or all of a matrix that folders hold transposed.
  std::int64_t block_rows(const WeightSlot& slot) const;

  // The read functions below read rows [begin, end) in our order, to `dst`. A vector is one row.
  // Where stored().pair_rows is set, rows are whole heads; a matrix that is stored transposed is
  // read whole. They throw InputError, also for a number that is not finite, and IoError.

  // Reads rows as F32, (end - begin, cols). A norm's gain comes as the file has it, with or without
  // its 1: adding and taking it away again would cost bits.
  void read_rows(const WeightSlot& slot, std::int64_t begin, std::int64_t end, float* dst) const;
  // Reads rows as the model computes with them: gains with their 1, rounded to nearest even in
  // `dtype`.
  void read_rows_as(DType dtype, const WeightSlot& slot, std::int64_t begin, std::int64_t end,
                    std::byte* dst) const;
  // Reads rows as blocks of block_type().
  void read_blocks(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
                   std::byte* dst) const;
  // Reads a matrix that a pre-quantised folder holds.
  HostPlanes read_planes(const WeightSlot& slot) const;
  // Reads columns [begin, end) of a matrix that is stored transposed, as F32 (rows, end - begin),
  // with all threads.
  void read_columns(const WeightSlot& slot, std::int64_t begin, std::int64_t end, float* dst) const;

 private:
  void open_tensors() const;
  void check_tensors() const;
  void check_no_other_tensors() const;
  void check_finite(const std::string& name, bool finite) const;
  std::shared_ptr<const HostPlanes> planes_of(const WeightSlot& slot) const;

  std::string path_;
  std::unique_ptr<GgufFile> gguf_;
  ModelConfig config_;
  std::vector<WeightSlot> slots_;
  mutable std::once_flag opened_;
  mutable std::unique_ptr<TensorReader> folder_tensors_;
  mutable FileLayout layout_{};
  mutable QuantisationConfig quantisation_;                // of a folder
  mutable std::map<std::string, StoredMatrix> quantised_;  // by the slot's name
  mutable std::set<std::string> parts_;                    // the names of their tensors
  // The last such matrix that was read by rows.
  struct LastRead {
    std::mutex mutex;
    std::string name;
    std::shared_ptr<const HostPlanes> planes;
  };
  const std::unique_ptr<LastRead> last_read_ = std::make_unique<LastRead>();
};

// The tokenizer of the model at `path` (ModelFile), which brings the chat template; no weight is read.
// Throws InputError, IoError.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& path);

}  // namespace lk
