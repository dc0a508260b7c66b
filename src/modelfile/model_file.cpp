#include "modelfile/model_file.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "io/input_file.h"
#include "io/json.h"
#include "io/paths.h"
#include "io/printable.h"
#include "io/safetensors.h"
#include "modelfile/config.h"
#include "modelfile/no_model.h"
#include "tensor/parts.h"
#include "text/tokenizer.h"

namespace lk {
namespace {

constexpr std::size_t kMaxSideFile = std::size_t{256} << 20;

// A number is finite if its exponent is not all ones. Written to be vectorised: eight times as fast
// as a loop that gathers a bool.
template <class Bits, Bits kExponent>
bool all_finite_bits(const std::byte* data, std::size_t bytes) {
  Bits found = 0;
  for (std::size_t i = 0; i < bytes / sizeof(Bits); ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * sizeof bits, sizeof bits);
    found |= static_cast<Bits>((bits & kExponent) == kExponent);
  }
  return found == 0;
}
bool all_finite_stored(DType t, const std::byte* data, std::size_t bytes) {
  return t == DType::BF16 ? all_finite_bits<std::uint16_t, 0x7f80>(data, bytes)
                          : all_finite_bits<std::uint32_t, 0x7f800000>(data, bytes);
}
bool all_finite(std::span<const float> values) {
  const auto bytes = std::as_bytes(values);
  return all_finite_stored(DType::F32, bytes.data(), bytes.size());
}

// Whether MLX quantised a weight: its scales and biases stand beside it.
bool is_mlx(const TensorReader& tensors, const std::string& name) {
  constexpr std::string_view weight = ".weight";
  if (!name.ends_with(weight) || !tensors.has(name)) return false;
  const std::string module = name.substr(0, name.size() - weight.size());
  return tensors.has(module + ".scales") && !tensors.has(module + ".qweight");
}

// Words for a tensor that is missing under its name and there under TensorFlow's, which transformers
// renames only in modules called LayerNorm.
std::string old_name(const TensorReader& tensors, const std::string& name) {
  const std::string module = name.substr(0, name.rfind('.'));
  const std::string old = module + (name.ends_with(".bias") ? ".beta" : ".gamma");
  if (!tensors.has(old)) return "";
  return concat(". ", old, " is there, a name that is not read, nor by transformers 5: rename it");
}

[[noreturn]] void deny(const QuantisationConfig& config, const std::string& claim,
                       const TensorReader& reader, const std::string& tensor,
                       const std::string& fact) {
  throw InputError(concat(config.where, ": ", claim, ", but tensor ", tensor, " of ",
                          reader.path_of(tensor), " is ", fact,
                          "; if the weights are right, write that there (a config that was saved "
                          "again may have lost it)"));
}

// Checks that what the config says allows a module to be stored as it is. The numbers follow from the
// tensors alone, but a config that they deny is of other weights, or was edited: which of the two is
// right can't be known here. Skip lists that name dense or unknown modules, and dense matrices that
// no list names, are what every writer leaves, and contradict nothing.
void check_claims(const QuantisationConfig& config, const TensorReader& reader,
                  const std::string& module, const StoredMatrix& stored) {
  auto refuse = [&](const std::string& claim, const std::string& fact) {
    deny(config, claim, reader, stored.names[0], fact);
  };
  const QuantisedFormat& f = stored.format;
  for (const DenseModule& dense : config.dense)
    if (dense.names(module))
      refuse(concat(dense.key, " has ", printable(dense.name), " stay dense"),
             "quantised: " + f.name());
  const std::vector<Encoding>& said = config.encodings;
  if (!said.empty() && std::find(said.begin(), said.end(), f.encoding) == said.end()) {
    if (config.method == QuantisationConfig::Method::Bitsandbytes)
      refuse(concat("bnb_4bit_quant_type is ", said[0] == Encoding::Nf4 ? "nf4" : "fp4"), f.name());
    refuse(concat("config_groups are of type ", said[0] == Encoding::Int4 ? "int" : "float"),
           f.name());
  }
  if (config.nested && *config.nested != f.nested)
    refuse(concat("bnb_4bit_use_double_quant is ", *config.nested ? "true" : "false"),
           f.nested ? "stored with scales that are quantised too" : "stored with plain scales");
}

// Checks that a folder may be dense, as the matrix of this name and all others are.
void check_may_be_dense(const QuantisationConfig& config, const TensorReader& reader,
                        const std::string& tensor) {
  if (!config.may_be_dense)
    deny(config, concat("quant_method is ", method_name(config.method)), reader, tensor,
         "dense, and so is every other: a model that is not quantised has no such key");
}

std::size_t n_values(const WeightSlot& slot, std::int64_t begin, std::int64_t end) {
  return static_cast<std::size_t>((end - begin) * slot.shape.cols());
}

}  // namespace

ModelFile::ModelFile(const std::string& path) : path_(path) {
  refuse_what_is_no_model(path);
  if (!is_folder(path)) gguf_ = std::make_unique<GgufFile>(path);
  config_ = gguf_ ? config_from_gguf(*gguf_) : config_from_folder(path);
  if (!gguf_) {
    const std::string json = path + "/config.json";
    quantisation_ = parse_quantisation(read_json(json, std::size_t{1} << 20), json);
  }
  ModelWeights unused;  // what the slots point into
  slots_ = weight_slots(config_, unused);
  for (WeightSlot& slot : slots_) slot.weight = nullptr;
}

ModelFile::~ModelFile() = default;

std::unique_ptr<Tokenizer> ModelFile::read_tokenizer() const {
  auto tokenizer = gguf_ ? Tokenizer::from_gguf(*gguf_) : Tokenizer::from_folder(path_);
  tokenizer->set_embedding_rows(config_.vocab_size);
  return tokenizer;
}

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& path) {
  return ModelFile(path).read_tokenizer();
}

// ---- files ------------------------------------------------------------------------------------

std::vector<const InputFile*> ModelFile::weight_files() const { return reader().files(); }

std::vector<std::pair<std::string, std::string>> ModelFile::side_files(bool of_codes) const {
  std::vector<std::pair<std::string, std::string>> files;
  if (gguf_) return files;
  files.emplace_back("config.json", read_file(path_ + "/config.json", kMaxSideFile));
  for (const char* name : {"generation_config.json", "tokenizer.json", "tokenizer_config.json",
                           "special_tokens_map.json", "added_tokens.json", "vocab.json",
                           "merges.txt", "chat_template.jinja", "tokenizer.model"}) {
    const std::string path = path_ + "/" + name;
    if (exists(path)) files.emplace_back(name, read_file(path, kMaxSideFile));
  }
  const std::string templates = "additional_chat_templates", folder = path_ + "/" + templates;
  if (is_folder(folder))
    for (const std::string& name : list_folder(folder))
      if (name.ends_with(".jinja"))
        files.emplace_back(concat(templates, "/", name),
                           read_file(folder + "/" + name, kMaxSideFile));
  if (of_codes) reader();  // it knows whether config.json says all
  if (const std::string& own = quantisation_.file; of_codes && own != "config.json")
    files.emplace_back(own, read_file(path_ + "/" + own, kMaxSideFile));
  return files;
}

// ---- tensors ----------------------------------------------------------------------------------

void ModelFile::open_tensors() const {
  std::call_once(opened_, [this] {
    if (!gguf_) folder_tensors_ = open_safetensors_model(path_);
    layout_ = gguf_ ? gguf_layout(config_) : folder_layout(config_, *folder_tensors_);
    check_tensors();
    check_no_other_tensors();
  });
}

void ModelFile::check_tensors() const {
  const TensorReader& tensors = gguf_ ? *gguf_ : *folder_tensors_;
  std::vector<std::string> names;
  if (!gguf_) names = tensors.names();
  if (quantisation_.method == QuantisationConfig::Method::None &&
      std::any_of(names.begin(), names.end(),
                  [](const std::string& name) { return name.ends_with(".qweight"); }))
    quantisation_ = read_own_quantisation(path_);
  for (const WeightSlot& slot : slots_) {
    StoredTensor want = layout_.find(slot);
    if (is_mlx(tensors, want.name))
      throw InputError(concat(tensors.path(), ": tensor ", want.name, ": ", kNotMlx));
    if (!gguf_) {
      std::optional<StoredMatrix> found;
      if (slot.linear)
        found = find_stored_matrix(tensors, names, want.name, slot.shape, quantisation_);
      if (slot.shape.rank() == 2)
        check_companions(tensors, names, want.name, found ? &*found : nullptr);
      if (found) {
        check_claims(quantisation_, tensors, slot.name.substr(0, slot.name.rfind('.')), *found);
        parts_.insert(found->names.begin(), found->names.end());
        quantised_.emplace(slot.name, std::move(*found));
        continue;
      }
    }
    if (!tensors.has(want.name))
      throw InputError(concat(tensors.path(), ": tensor ", want.name, " is missing: ",
                              config_name(), " asks for it", old_name(tensors, want.name)));
    tensors.check_readable(want.name);
    if (Shape shape = tensors.shape(want.name); !(shape == want.shape))
      throw InputError(concat(tensors.path_of(want.name), ": tensor ", want.name, " has shape ",
                              shape.str(), ", ", config_name(), " asks for ", want.shape.str()));
  }
  if (gguf_ || !quantised_.empty()) return;
  const auto matrix =
      std::find_if(slots_.begin(), slots_.end(), [](const WeightSlot& s) { return s.linear; });
  check_may_be_dense(quantisation_, tensors, layout_.find(*matrix).name);
}

// A tensor that nothing asks for would change another program's model, so ours is not that model.
void ModelFile::check_no_other_tensors() const {
  const TensorReader& tensors = gguf_ ? *gguf_ : *folder_tensors_;
  std::set<std::string> wanted;
  for (const WeightSlot& slot : slots_) wanted.insert(layout_.find(slot).name);
  for (const std::string& name : tensors.names())
    if (!wanted.count(name) && !is_buffer(name) && !parts_.count(name) &&
        !(may_repeat_head() && name == kFolderHead) && !is_zero_bias(name))
      throw InputError(concat(tensors.path_of(name), ": tensor ", name,
                              " is unknown: ", config_name(), " does not ask for it"));
}

// AutoGPTQ wrote a bias beside every matrix that it quantised, zeros where the model has none.
bool ModelFile::is_zero_bias(const std::string& name) const {
  constexpr std::string_view kEnd = ".bias";
  if (!name.ends_with(kEnd) || quantisation_.method != QuantisationConfig::Method::Gptq ||
      !parts_.count(name.substr(0, name.size() - kEnd.size()) + ".qweight"))
    return false;
  const Shape shape = folder_tensors_->shape(name);
  if (shape.rank() != 1) return false;
  folder_tensors_->check_readable(name);
  std::vector<float> bias(static_cast<std::size_t>(shape[0]));
  folder_tensors_->read_rows(name, 0, 1, bias.data());
  return std::all_of(bias.begin(), bias.end(), [](float x) { return x == 0; });
}

bool ModelFile::may_repeat_head() const { return config_.tie_embeddings && !gguf_; }

const TensorReader& ModelFile::reader() const {
  open_tensors();
  if (gguf_) return *gguf_;
  return *folder_tensors_;
}

bool ModelFile::is_buffer(const std::string& name) const {
  if (gguf_) return name == "rope_freqs.weight";
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with("self_attn.k_scale") ||
         name.ends_with("self_attn.v_scale") ||
         (files_of(config_).conv1d &&
          (name.ends_with(".attn.bias") || name.ends_with(".masked_bias")));
}

// What is quantised is (out, in) in every folder.
StoredTensor ModelFile::stored(const WeightSlot& slot) const {
  open_tensors();
  StoredTensor from = layout_.find(slot);
  if (quantised_.count(slot.name)) from.transposed = false, from.shape = slot.shape;
  return from;
}

bool ModelFile::is_quantised() const {
  return std::any_of(slots_.begin(), slots_.end(),
                     [&](const WeightSlot& slot) { return quantised_format(slot).has_value(); });
}

std::string ModelFile::codes_format() const {
  open_tensors();
  const bool second = std::any_of(quantised_.begin(), quantised_.end(), [](const auto& entry) {
    return entry.second.layout == StoredMatrix::Layout::Gptq && entry.second.zero_shift == 0;
  });
  return second ? "gptq_v2" : "";
}

bool ModelFile::is_part(const std::string& name) const {
  open_tensors();
  return parts_.count(name) > 0;
}

std::optional<QuantisedFormat> ModelFile::quantised_format(const WeightSlot& slot) const {
  open_tensors();
  if (auto at = quantised_.find(slot.name); at != quantised_.end()) return at->second.format;
  if (const GgmlType* type = gguf_ ? block_type(slot) : nullptr) return block_format(*type);
  return std::nullopt;
}

HostPlanes ModelFile::read_planes(const WeightSlot& slot) const {
  return read_stored_matrix(reader(), quantised_.at(slot.name), slot.shape);
}

std::shared_ptr<const HostPlanes> ModelFile::planes_of(const WeightSlot& slot) const {
  const std::lock_guard lock(last_read_->mutex);
  if (last_read_->name != slot.name) {
    last_read_->planes = nullptr;
    last_read_->planes = std::make_shared<const HostPlanes>(read_planes(slot));
    last_read_->name = slot.name;
  }
  return last_read_->planes;
}

std::string ModelFile::stored_type(const WeightSlot& slot) const {
  if (auto at = (open_tensors(), quantised_.find(slot.name)); at != quantised_.end())
    return at->second.format.name();
  return reader().stored_type(stored(slot).name);
}

const GgmlType* ModelFile::block_type(const WeightSlot& slot) const {
  const StoredTensor from = stored(slot);
  if (slot.shape.rank() != 2 || from.transposed || from.minus_one) return nullptr;
  return reader().quantised_type(from.name);
}

std::int64_t ModelFile::block_rows(const WeightSlot& slot) const {
  if (slot.shape.rank() == 1) return 1;
  if (stored(slot).transposed) return slot.shape.rows();
  const std::int64_t rows = std::max<std::int64_t>(1, kWeightBlockBytes / (4 * slot.shape.cols()));
  const std::int64_t heads =
      slot.role == Role::Q || slot.role == Role::K ? config_.head_dim : std::int64_t{1};
  return (rows + heads - 1) / heads * heads;
}

void ModelFile::check_finite(const std::string& name, bool finite) const {
  if (!finite)
    throw InputError(
        concat(reader().path_of(name), ": tensor ", name, " holds a number that is not finite"));
}

void ModelFile::read_rows(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
                          float* dst) const {
  const StoredTensor from = stored(slot);
  if (from.transposed) {
    check(begin == 0 && end == slot.shape.rows(), "read_rows: ", slot.name,
          " is transposed in its file and read whole");
    return read_columns(slot, 0, slot.shape.cols(), dst);
  }
  const std::size_t n = n_values(slot, begin, end);
  if (quantised_.count(slot.name)) return dequantise_rows(planes_of(slot)->view(), begin, end, dst);
  reader().read_rows(from.name, begin, end, dst);
  check_finite(from.name, all_finite({dst, n}));
  if (from.pair_rows == 0) return;
  std::vector<float> pairs(dst, dst + n);
  pairs_to_halves<float>(pairs, from.pair_rows, slot.shape.rank() == 1 ? 1 : slot.shape.cols(),
                         dst);
}

// Numbers that are stored as they are wanted go straight to `dst`.
void ModelFile::read_rows_as(DType dtype, const WeightSlot& slot, std::int64_t begin,
                             std::int64_t end, std::byte* dst) const {
  const StoredTensor from = stored(slot);
  const std::size_t n = n_values(slot, begin, end);
  if (!from.transposed && !from.pair_rows && !from.minus_one && !quantised_.count(slot.name) &&
      reader().plain_type(from.name) == dtype) {
    reader().read_stored(from.name, begin, end, reinterpret_cast<std::uint8_t*>(dst));
    return check_finite(from.name, all_finite_stored(dtype, dst, n * dtype_size(dtype)));
  }
  std::vector<float> values(n);
  read_rows(slot, begin, end, values.data());
  if (from.minus_one)
    for (float& v : values) v += 1.0f;
  dispatch_float(dtype, [&]<class T>() {
    T* rounded = reinterpret_cast<T*>(dst);
    for (std::size_t i = 0; i < n; ++i) rounded[i] = static_cast<T>(values[i]);
  });
}

// The blocks are dequantised too, to see that all values are finite.
void ModelFile::read_blocks(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
                            std::byte* dst) const {
  const StoredTensor from = stored(slot);
  const GgmlType& type = *block_type(slot);
  const std::int64_t cols = slot.shape.cols(), row_bytes = type.row_bytes(cols);
  std::vector<std::uint8_t> blocks(static_cast<std::size_t>((end - begin) * row_bytes));
  reader().read_stored(from.name, begin, end, blocks.data());
  std::vector<float> row(static_cast<std::size_t>(cols));
  for (std::int64_t i = 0; i < end - begin; ++i) {
    type.decode(blocks.data() + i * row_bytes, cols / type.block_values, row.data());
    check_finite(from.name, all_finite(row));
  }
  auto* to = reinterpret_cast<std::uint8_t*>(dst);
  if (from.pair_rows)
    pairs_to_halves<std::uint8_t>(blocks, from.pair_rows, row_bytes, to);
  else
    std::copy(blocks.begin(), blocks.end(), to);
}

// A block of stored rows is a block of our columns.
void ModelFile::read_columns(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
                             float* dst) const {
  const StoredTensor from = stored(slot);
  check(from.transposed, "read_columns: ", slot.name, " is not stored transposed");
  const std::int64_t rows = slot.shape.rows(), n = end - begin;
  std::vector<float> values(static_cast<std::size_t>(n * rows));
  for_parts(n, (n + 15) / 16, [&](std::int64_t first, std::int64_t last) {
    const std::span<float> part(values.data() + first * rows, values.data() + last * rows);
    reader().read_rows(from.name, begin + first, begin + last, part.data());
    check_finite(from.name, all_finite(part));
  });
  transpose(values, n, rows, dst);
}

}  // namespace lk
