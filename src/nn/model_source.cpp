#include "nn/model_source.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <span>

#include "io/safetensors.h"
#include "nn/gguf_names.h"
#include "nn/rotary_rows.h"

namespace lk {

std::string gguf_architecture(const ModelConfig& config) {
  if (config.architecture == "llama" || config.architecture == "mistral") return "llama";
  if (config.architecture == "qwen2") return "qwen2";
  throw UsageError(concat("architecture '", config.architecture,
                          "' can't be converted or merged (llama, mistral, qwen2 can)"));
}

ModelSource::ModelSource(const std::string& path) : path_(path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    config_ = config_from_folder(path);
    reader_ = open_safetensors_model(path);
  } else {
    auto file = std::make_unique<GgufFile>(path);
    config_ = config_from_gguf(*file);
    gguf_ = file.get();
    reader_ = std::move(file);
  }
  gguf_architecture(config_);  // refuses a layout that read_rows() does not know
  slots_ = weight_slots(config_, unused_);
  for (WeightSlot& slot : slots_) {
    slot.weight = nullptr;
    const std::string name = stored_name(slot);
    if (!reader_->has(name))
      throw InputError(concat(reader_->path(), ": tensor ", name, " is missing"));
    if (Shape shape = reader_->shape(name); !(shape == slot.shape))
      throw InputError(concat(reader_->path(), ": tensor ", name, " has shape ", shape.str(),
                              ", its config asks for ", slot.shape.str()));
  }
}

std::string ModelSource::stored_name(const WeightSlot& slot) const {
  return gguf_ ? gguf_name(slot.name) : slot.name;
}

std::string ModelSource::stored_type(const WeightSlot& slot) const {
  return reader_->stored_type(stored_name(slot));
}

std::int64_t ModelSource::block_rows(const WeightSlot& slot) const {
  if (slot.shape.rank() == 1) return 1;
  const std::int64_t rows = std::max<std::int64_t>(1, kWeightBlockBytes / (4 * slot.shape.cols()));
  const std::int64_t heads = has_rotary_rows(slot.name) ? config_.head_dim : 1;
  return (rows + heads - 1) / heads * heads;
}

void ModelSource::read_rows(const WeightSlot& slot, std::int64_t begin, std::int64_t end,
                            float* dst) const {
  const std::string name = stored_name(slot);
  const auto n = static_cast<std::size_t>((end - begin) * slot.shape.cols());
  const bool pairs = gguf_ && gguf_architecture(config_) == "llama" && has_rotary_rows(slot.name);
  if (pairs) {
    std::vector<float> stored(n);
    reader_->read_rows(name, begin, end, stored.data());
    const bool vector = slot.shape.rank() == 1;
    pairs_to_halves(stored, config_.head_dim, vector ? 1 : slot.shape.cols(), dst);
  } else {
    reader_->read_rows(name, begin, end, dst);
  }
  if (!std::all_of(dst, dst + n, [](float v) { return std::isfinite(v); }))
    throw InputError(
        concat(reader_->path(), ": tensor ", name, " holds a number that is not finite"));
}

}  // namespace lk
