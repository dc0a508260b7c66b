#include "modelfile/load.h"

#include <algorithm>
#include <set>
#include <vector>

#include "io/gguf.h"
#include "io/paths.h"
#include "io/safetensors.h"
#include "modelfile/config.h"
#include "modelfile/weight_loader.h"

namespace lk {
namespace {

// Every tensor present with its shape, and no other: found before a byte of memory is taken.
void check_inventory(const WeightSource& source, const ModelConfig& config,
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

void stream_weights(Backend& backend, const WeightSource& source, DType dtype,
                    const LoadOptions& options, LoadedModel& model) {
  const ModelConfig& config = model.config;
  ModelWeights& weights = model.weights;
  std::vector<WeightSlot> slots = weight_slots(config, weights);
  check_inventory(source, config, slots);
  if (config.tie_embeddings && !source.layout.gguf)
    check_tied_head(*source.reader, config, source.layout.find(slots[0]).name);

  WeightLoader loader(backend, source, dtype, options.storage);
  WeightsHash hash;
  std::int64_t total = 0, done = 0;
  for (const WeightSlot& slot : slots) total += loader.bytes(slot);
  if (std::int64_t free = backend.free_memory(); total > free)
    throw OutOfMemoryError(concat(source.reader->path(), ": the weights need ", total >> 20,
                                  " MiB as ", dtype_name(dtype), ", ", backend.name(), " has ",
                                  free >> 20, " MiB left"));
  for (WeightSlot& slot : slots) {
    if (options.hash) {
      RowHashes rows(slot.shape, dtype);
      *slot.weight = loader.load(slot, &rows);
      hash.add(slot.name, rows);
    } else {
      *slot.weight = loader.load(slot);
    }
    if (slot.linear) backend.prepare_linear(*slot.weight);
    done += loader.bytes(slot);
    if (options.progress) options.progress(done, total, slot.name);
  }
  if (config.tie_embeddings) tie_head(backend, weights);
  if (options.hash) model.sha256 = hash.hex();
}

LoadedModel load(Backend& backend, const std::string& path, DType dtype,
                 const LoadOptions& options) {
  check(is_float(dtype), "load_model: compute dtype ", dtype_name(dtype));
  LoadedModel model;
  model.path = path;
  WeightSource source{};
  if (is_folder(path)) {
    model.config = config_from_folder(path);
    source.reader = open_safetensors_model(path);
    source.config_name = "config.json";
    source.layout = folder_layout(model.config, *source.reader);
  } else {
    auto file = std::make_unique<GgufFile>(path);
    model.config = config_from_gguf(*file);
    source.layout = gguf_layout(model.config);
    source.reader = std::move(file);
    source.config_name = "its metadata";
  }
  stream_weights(backend, source, dtype, options, model);
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

LoadedModel load_model(Backend& backend, const std::string& path, DType compute_dtype,
                       const LoadOptions& options) {
  ModelHead head = read_model_head(path);  // a bad tokenizer is found before the weights are read
  LoadedModel model = load(backend, path, compute_dtype, options);
  model.tokenizer = std::move(head.tokenizer);
  model.chat_template = model.tokenizer->chat_template();
  return model;
}

LoadedModel load_weights(Backend& backend, const std::string& path, DType compute_dtype,
                         const LoadOptions& options) {
  return load(backend, path, compute_dtype, options);
}

}  // namespace lk
