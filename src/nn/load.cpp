#include "nn/load.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <exception>
#include <filesystem>
#include <future>
#include <set>
#include <span>
#include <vector>

#include "io/gguf.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/sha256.h"
#include "nn/file_layout.h"
#include "nn/rotary_rows.h"

namespace lk {
namespace {

// A model file behind one interface, whatever its format.
struct Source {
  std::unique_ptr<TensorReader> reader;
  FileLayout layout;
  std::string config_name;         // for messages
  std::vector<std::string> files;  // that hold weights

  // Tensors that may be there and are not weights: rotary frequencies, read with the config or
  // recomputed, and the causal masks in GPT-2's files.
  bool ignorable(const std::string& name) const {
    if (layout.gguf) return name == "rope_freqs.weight";
    return name.ends_with("rotary_emb.inv_freq") ||
           (layout.family->conv1d &&
            (name.ends_with(".attn.bias") || name.ends_with(".masked_bias")));
  }
};

// The files that a folder's weights are in, in the order in which io/ looks for them.
std::vector<std::string> weight_files(const std::string& folder) {
  std::string single = folder + "/model.safetensors";
  std::error_code ignored;
  if (std::filesystem::exists(single, ignored)) return {single};
  std::string index_path = folder + "/model.safetensors.index.json";
  Json index = read_json(index_path);
  std::set<std::string> names;
  for (const auto& [tensor, file] : json_at(index, "weight_map", index_path).items())
    names.insert(file.get<std::string>());
  std::vector<std::string> files;
  for (const std::string& name : names) files.push_back(folder + "/" + name);
  return files;
}

std::string fingerprint_of(const std::vector<std::string>& files) {
  if (files.size() == 1) return sha256_file(files[0]);
  Sha256 all;
  for (const std::string& path : files) {
    std::string line =
        concat(sha256_file(path), "  ", std::filesystem::path(path).filename().string(), "\n");
    all.update(line.data(), line.size());
  }
  return all.hex();
}

// Every tensor present with its shape, and no other: found before a byte of memory is taken.
void check_inventory(const Source& source, const ModelConfig& config,
                     const std::vector<WeightSlot>& slots) {
  const TensorReader& reader = *source.reader;
  std::set<std::string> wanted;
  for (const WeightSlot& slot : slots) {
    const StoredTensor stored = source.layout.find(slot);
    if (!reader.has(stored.name))
      throw InputError(concat(reader.path(), ": tensor ", stored.name,
                              " is missing: ", source.config_name, " asks for it"));
    Shape shape = reader.shape(stored.name);
    if (!(shape == stored.shape))
      throw InputError(concat(reader.path(), ": tensor ", stored.name, " has shape ", shape.str(),
                              ", ", source.config_name, " asks for ", stored.shape.str()));
    wanted.insert(stored.name);
  }
  for (const std::string& name : reader.names()) {
    if (wanted.count(name) || source.ignorable(name)) continue;
    if (config.tie_embeddings && !source.layout.gguf && name == "lm_head.weight")
      continue;  // compared below
    throw InputError(concat(reader.path(), ": tensor ", name, " is unknown: ", source.config_name,
                            " does not ask for it"));
  }
}

// Runs f(begin, end) over row ranges of [0, rows), on all threads if `many`; rethrows the first
// exception.
template <class F>
void split_rows(std::int64_t rows, bool many, const F& f) {
  constexpr std::int64_t kParts = 16;
  const std::int64_t step = std::max<std::int64_t>(1, (rows + kParts - 1) / kParts);
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic) if (many)
  for (std::int64_t begin = 0; begin < rows; begin += step) {
    try {
      f(begin, std::min(begin + step, rows));
    } catch (...) {
#pragma omp critical(lk_load_failure)
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// Streams tensors from a file to the device.
class Loader {
 public:
  Loader(Backend& backend, const Source& source, DType dtype, WeightStorage storage)
      : backend_(backend), source_(source), dtype_(dtype), storage_(storage) {}

  // The type of the blocks in which the tensor stays, null if it becomes dense.
  const GgmlType* kept_type(const WeightSlot& slot) const {
    if (storage_ == WeightStorage::Dense || slot.shape.rank() != 2) return nullptr;
    const StoredTensor stored = source_.layout.find(slot);
    if (stored.transposed || stored.minus_one) return nullptr;
    const GgmlType* type = source_.reader->quantised_type(stored.name);
    return type && backend_.keeps_quantised(*type) ? type : nullptr;
  }
  // Bytes in memory.
  std::int64_t bytes(const WeightSlot& slot) const {
    if (const GgmlType* type = kept_type(slot))
      return slot.shape[0] * type->row_bytes(slot.shape[1]);
    return slot.shape.numel() * static_cast<std::int64_t>(dtype_size(dtype_));
  }

  Weight load_weight(const WeightSlot& slot) {
    if (const GgmlType* type = kept_type(slot))
      return Weight(slot.name, load_blocks(slot, *type), slot.shape, *type, dtype_);
    return Weight(slot.name, load(slot));
  }

 private:
  // Rows as the file has them. They are dequantised too, to see that all values are finite.
  Tensor load_blocks(const WeightSlot& slot, const GgmlType& type) {
    const std::int64_t rows = slot.shape[0], cols = slot.shape[1];
    const std::int64_t row_bytes = type.row_bytes(cols);
    Tensor tensor = backend_.empty(Tag::Weights, DType::U8, {rows, row_bytes});
    StoredTensor stored = source_.layout.find(slot);
    std::int64_t step = std::max<std::int64_t>(1, kWeightBlockBytes / (4 * cols));
    if (stored.pair_rows)
      step = (step + stored.pair_rows - 1) / stored.pair_rows * stored.pair_rows;
    std::vector<std::uint8_t> blocks;
    for (std::int64_t begin = 0; begin < rows; begin += step) {
      const std::int64_t n = std::min(step, rows - begin);
      blocks.resize(static_cast<std::size_t>(n * row_bytes));
      split_rows(n, n * cols > std::int64_t{1} << 16, [&](std::int64_t first, std::int64_t last) {
        std::uint8_t* to = blocks.data() + first * row_bytes;
        source_.reader->read_blocks(stored.name, begin + first, begin + last, to);
        std::vector<float> row(static_cast<std::size_t>(cols));
        for (std::int64_t i = 0; i < last - first; ++i) {
          type.decode(to + i * row_bytes, cols / type.block_values, row.data());
          check_finite(stored.name, row);
        }
      });
      if (stored.pair_rows) split_pairs(blocks, stored.pair_rows, row_bytes);
      backend_.upload(tensor.slice_rows(begin, begin + n), blocks.data(), blocks.size());
    }
    return tensor;
  }

  Tensor load(const WeightSlot& slot) {
    Tensor tensor = backend_.empty(Tag::Weights, dtype_, slot.shape);
    StoredTensor stored = source_.layout.find(slot);
    if (stored.transposed) {
      load_transposed(stored.name, tensor);
      return tensor;
    }
    const bool vector = slot.shape.rank() == 1;
    // A vector is one row to the reader; a bias of q or k is permuted by element.
    const std::int64_t rows = vector ? slot.shape[0] : tensor.rows();
    const std::int64_t cols = vector ? 1 : tensor.cols();
    std::int64_t step = std::max<std::int64_t>(1, kWeightBlockBytes / (4 * cols));
    if (vector) step = rows;
    if (stored.pair_rows)
      step = (step + stored.pair_rows - 1) / stored.pair_rows * stored.pair_rows;
    for (std::int64_t begin = 0; begin < rows; begin += step) {
      std::int64_t end = std::min(begin + step, rows);
      values_.resize(static_cast<std::size_t>((end - begin) * cols));
      if (vector)
        read(stored.name, 0, 1, values_);
      else
        read_block(stored.name, begin, end, cols);
      if (stored.pair_rows) split_pairs(values_, stored.pair_rows, cols);
      if (stored.minus_one)
        for (float& v : values_) v += 1.0f;
      upload_rounded(backend_, vector ? tensor : tensor.slice_rows(begin, end), values_);
    }
    return tensor;
  }

  // A block of stored rows is a block of our columns.
  void load_transposed(const std::string& name, const Tensor& tensor) {
    const std::int64_t out = tensor.rows(), in = tensor.cols();
    const std::int64_t step = std::max<std::int64_t>(1, kWeightBlockBytes / (4 * out));
    for (std::int64_t begin = 0; begin < in; begin += step) {
      const std::int64_t end = std::min(begin + step, in), n = end - begin;
      values_.resize(static_cast<std::size_t>(n * out));
      transposed_.resize(values_.size());
      read_block(name, begin, end, out);
      transpose(values_, n, out, transposed_);
      Tensor block = n == in ? tensor : backend_.empty(Tag::Workspace, dtype_, {out, n});
      upload_rounded(backend_, block, transposed_);
      if (n != in) backend_.copy(tensor.slice_cols(begin, end), block);
    }
  }

  void read_block(const std::string& name, std::int64_t begin, std::int64_t end,
                  std::int64_t cols) {
    const bool many = values_.size() > std::size_t{1} << 16;
    split_rows(end - begin, many, [&](std::int64_t first, std::int64_t last) {
      std::span<float> part(values_.data() + first * cols, values_.data() + last * cols);
      read(name, begin + first, begin + last, part);
    });
  }

  void read(const std::string& name, std::int64_t begin, std::int64_t end,
            std::span<float> values) const {
    source_.reader->read_rows(name, begin, end, values.data());
    check_finite(name, values);
  }

  void check_finite(const std::string& name, std::span<const float> values) const {
    bool finite = true;
    for (float v : values) finite &= std::isfinite(v);
    if (!finite)
      throw InputError(
          concat(source_.reader->path(), ": tensor ", name, " holds a number that is not finite"));
  }

  // A row is `size` items.
  template <class T>
  static void split_pairs(std::vector<T>& values, std::int64_t head_dim, std::int64_t size) {
    std::vector<T> halves(values.size());
    pairs_to_halves(values, head_dim, size, halves.data());
    values.swap(halves);
  }

  Backend& backend_;
  const Source& source_;
  DType dtype_;
  WeightStorage storage_;
  std::vector<float> values_, transposed_;
};

// A tied model whose file also holds a head: the two must be the same numbers, or it is unclear
// which model was meant (transformers would silently drop the head).
void check_tied_head(const TensorReader& reader, const ModelConfig& c,
                     const std::string& embedding_name) {
  static const char* kHead = "lm_head.weight";
  if (!reader.has(kHead)) return;
  Shape shape{c.vocab_size, c.hidden_size};
  bool same = reader.shape(kHead) == shape;
  const std::int64_t step = std::max<std::int64_t>(1, kWeightBlockBytes / (4 * c.hidden_size));
  std::vector<float> a, b;
  for (std::int64_t begin = 0; same && begin < c.vocab_size; begin += step) {
    std::int64_t end = std::min(begin + step, c.vocab_size);
    a.resize(static_cast<std::size_t>((end - begin) * c.hidden_size));
    b.resize(a.size());
    reader.read_rows(kHead, begin, end, a.data());
    reader.read_rows(embedding_name, begin, end, b.data());
    same = a == b;
  }
  if (!same)
    throw InputError(concat(reader.path(), ": tensor ", kHead, " differs from ", embedding_name,
                            ", but tie_word_embeddings is true"));
}

ModelWeights stream_weights(Backend& backend, const Source& source, const ModelConfig& config,
                            DType dtype, const LoadProgress& progress, WeightStorage storage) {
  ModelWeights weights;
  std::vector<WeightSlot> slots = weight_slots(config, weights);
  check_inventory(source, config, slots);
  if (config.tie_embeddings && !source.layout.gguf)
    check_tied_head(*source.reader, config, source.layout.find(slots[0]).name);

  Loader loader(backend, source, dtype, storage);
  std::int64_t total = 0, done = 0;
  for (const WeightSlot& slot : slots) total += loader.bytes(slot);
  if (std::int64_t free = backend.free_memory(); total > free)
    throw OutOfMemoryError(concat(source.reader->path(), ": the weights need ", total >> 20,
                                  " MiB as ", dtype_name(dtype), ", ", backend.name(), " has ",
                                  free >> 20, " MiB left"));
  for (WeightSlot& slot : slots) {
    *slot.weight = loader.load_weight(slot);
    if (slot.linear) backend.prepare_linear(*slot.weight);
    done += loader.bytes(slot);
    if (progress) progress(done, total, slot.name);
  }
  if (config.tie_embeddings) tie_head(backend, weights);
  return weights;
}

bool is_folder(const std::string& path) {
  std::error_code ignored;  // what cannot be looked at is not a folder: opening it says why
  return std::filesystem::is_directory(path, ignored);
}

LoadedModel load(Backend& backend, const std::string& path, DType dtype,
                 const LoadProgress& progress, WeightStorage storage) {
  check(is_float(dtype), "load_model: compute dtype ", dtype_name(dtype));
  LoadedModel model;
  model.path = path;
  Source source{};
  if (is_folder(path)) {
    model.config = config_from_folder(path);
    source.reader = open_safetensors_model(path);
    source.config_name = "config.json";
    source.files = weight_files(path);
    source.layout = folder_layout(model.config, *source.reader);
  } else {
    auto file = std::make_unique<GgufFile>(path);
    model.config = config_from_gguf(*file);
    source.layout = gguf_layout(model.config);
    source.reader = std::move(file);
    source.config_name = "its metadata";
    source.files = {path};
  }
  // Hashing reads the file a second time, beside the loading.
  std::future<std::string> fingerprint =
      std::async(std::launch::async, [&source] { return fingerprint_of(source.files); });
  model.weights = stream_weights(backend, source, model.config, dtype, progress, storage);
  model.fingerprint = fingerprint.get();
  return model;
}

}  // namespace

ModelHead read_model_head(const std::string& path) {
  ModelHead head;
  if (is_folder(path)) {
    head.config = config_from_folder(path);
    head.tokenizer = Tokenizer::from_folder(path);
  } else {
    GgufFile file(path);
    head.config = config_from_gguf(file);
    head.tokenizer = Tokenizer::from_gguf(file);
  }
  if (head.tokenizer->n_tokens() > head.config.vocab_size)
    throw InputError(concat(path, ": the tokenizer has ids up to ", head.tokenizer->n_tokens() - 1,
                            ", vocab_size is ", head.config.vocab_size));
  return head;
}

std::vector<std::string> model_weight_files(const std::string& path) {
  return is_folder(path) ? weight_files(path) : std::vector<std::string>{path};
}

std::string model_fingerprint(const std::string& path) {
  return fingerprint_of(model_weight_files(path));
}

LoadedModel load_model(Backend& backend, const std::string& path, DType compute_dtype,
                       const LoadProgress& progress, WeightStorage storage) {
  ModelHead head = read_model_head(path);  // a bad tokenizer is found before the weights are read
  LoadedModel model = load(backend, path, compute_dtype, progress, storage);
  model.tokenizer = std::move(head.tokenizer);
  model.chat_template = model.tokenizer->chat_template();
  return model;
}

LoadedModel load_weights(Backend& backend, const std::string& path, DType compute_dtype,
                         const LoadProgress& progress, WeightStorage storage) {
  return load(backend, path, compute_dtype, progress, storage);
}

}  // namespace lk
