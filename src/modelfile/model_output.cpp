#include "modelfile/model_output.h"

#include <algorithm>
#include <cmath>

#include "io/durable.h"
#include "io/json.h"
#include "io/paths.h"
#include "modelfile/config.h"
#include "modelfile/config_gguf_write.h"
#include "modelfile/load.h"
#include "modelfile/quantise.h"
#include "modelfile/quantised_output.h"
#include "text/tokenizer_convert.h"

namespace lk {

namespace {

std::string hf_dtype(const GgmlEncoder& type) {
  const std::string name = type.name;
  return name == "F16" ? "float16" : name == "BF16" ? "bfloat16" : "float32";
}

// A folder's config.json as it is, but for the dtype if it is another and for how what is written is
// quantised.
std::string with_types(const std::string& text, const std::string& dtype,
                       const OrderedJson& quantisation) {
  OrderedJson j = OrderedJson::parse(text);  // config_from_folder() has been through it
  bool same = j.erase("quantization_config") == 0;
  if (!quantisation.is_null()) {
    j["quantization_config"] = quantisation;
    same = false;
  }
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (!j.contains(key)) continue;
    same = same && j[key] == dtype;
    j[key] = dtype;
  }
  if (!j.contains("dtype") && !j.contains("torch_dtype")) {
    j["torch_dtype"] = dtype;  // version 5 reads it too
    same = false;
  }
  return same ? text : j.dump(2) + "\n";
}

std::string model_name(const std::string& path) {
  const std::string name = folder_name(path);
  return name.empty() ? "model" : name;
}

// What `convert` makes of the base's config, which names the base where it can't.
template <class Convert>
auto converted(const ModelFile& base, const Convert& convert) {
  try {
    return convert(base.config());
  } catch (const UsageError& e) {
    throw UsageError(concat(base.path(), ": ", e.what()));
  }
}

// Name and content of the files beside a folder's weights, converted where the base is a GGUF file.
// Throws InputError, UsageError.
std::vector<std::pair<std::string, std::string>> side_files(const ModelFile& base,
                                                            const std::string& dtype,
                                                            const OrderedJson& quantisation) {
  std::vector<std::pair<std::string, std::string>> files;
  if (base.gguf() != nullptr) {
    const Json config = converted(base, [&](ModelConfig c) {
      c.stored_dtype = dtype;
      return config_to_json(c);
    });
    files.emplace_back("config.json", config.dump(2) + "\n");
    for (auto& file : hf_tokenizer_files(*base.gguf())) files.push_back(std::move(file));
  } else {
    files = base.side_files(false);
  }
  files[0].second = with_types(files[0].second, dtype, quantisation);  // config.json
  return files;
}

// GGUF metadata for matrices of `type`. A GGUF file's is copied, but for the keys that say how
// numbers are stored. Of folders, only models with a tokenizer that GGUF can express can be
// converted; others are an InputError. `notes` gets what of the tokenizer is left out.
GgufWriter::Metadata model_metadata(const ModelFile& base, const GgmlEncoder& type,
                                    std::vector<std::string>& notes) {
  GgufWriter::Metadata m;
  if (const GgufFile* file = base.gguf()) {
    for (auto& [key, value] : file->metadata())
      if (key != "general.alignment" && key != "general.file_type" &&
          key != "general.quantization_version" && !key.starts_with("split."))
        m.emplace_back(key, std::move(value));
  } else {
    m = converted(base, config_to_gguf);
    m.emplace_back("general.type", gguf_string("model"));
    m.emplace_back("general.name", gguf_string(model_name(base.path())));
    for (auto& entry : gguf_tokenizer(base.path(), base.config().vocab_size, notes))
      m.push_back(std::move(entry));
  }
  m.emplace_back("general.file_type", gguf_u32(type.file_type));
  if (type.quantised) m.emplace_back("general.quantization_version", gguf_u32(2));
  return m;
}

bool every_finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

void require_finite(std::span<const float> values, const ModelFile& base, const WeightSlot& slot) {
  if (!every_finite(values))
    throw InputError(concat(base.path(), ": tensor ", slot.name,
                            ": a value to be written is not finite: no type holds it"));
}

// F16, and the scales of blocks, end at 65,504; all others as F32 does, but for what rounds up.
void require_held(bool held, const std::string& type, const std::string& tensor) {
  const bool far = type == "BF16" || find_ggml_encoder(type) == nullptr;
  require(held, "`type` ", type, ": tensor ", tensor, ": a value is too large for it; ",
          far ? "f32 holds it" : "bf16 and f32 hold it");
}

// rope_freqs.weight: the D/2 divisors of the rotary frequencies, empty if GGUF needs none.
std::vector<float> rope_factors(const ModelFile& base) {
  const ModelConfig& c = base.config();
  if (c.rope_scaling.kind == RopeScaling::Kind::Factors) return c.rope_scaling.factors;
  if (c.rope_scaling.kind != RopeScaling::Kind::Llama3) return {};
  if (base.gguf() != nullptr) {  // where the rule was recognised by its factors
    std::vector<float> factors(static_cast<std::size_t>(c.head_dim / 2));
    base.gguf()->read_rows("rope_freqs.weight", 0, 1, factors.data());
    return factors;
  }
  ModelConfig plain = c;
  plain.rope_scaling = {};
  const std::vector<double> scaled = inverse_frequencies(c), unscaled = inverse_frequencies(plain);
  std::vector<float> factors;
  for (std::size_t i = 0; i < scaled.size(); ++i)
    factors.push_back(static_cast<float>(unscaled[i] / scaled[i]));
  return factors;
}

}  // namespace

bool round_to(const GgmlEncoder& type, std::span<float> values, std::vector<std::uint8_t>& bytes) {
  const std::int64_t n = std::ssize(values) / type.block_values;
  bytes.resize(static_cast<std::size_t>(n) * type.block_bytes);
  const GgmlType* decoder = find_ggml_type(type.id);
  bool finite = true;
  constexpr std::int64_t kStep = 4096;  // blocks
#pragma omp parallel for reduction(&& : finite)
  for (std::int64_t b = 0; b < n; b += kStep) {
    const std::int64_t count = std::min(kStep, n - b);
    float* part = values.data() + b * type.block_values;
    std::uint8_t* to = bytes.data() + b * type.block_bytes;
    type.encode(part, count, to);
    decoder->decode(to, count, part);
    for (std::int64_t i = 0; i < count * type.block_values; ++i)
      finite = finite && std::isfinite(part[i]);
  }
  return finite;
}

ModelOutput::ModelOutput(const ModelFile& base, const OutputFormat& format)
    : base_(base),
      gguf_(format.gguf),
      layout_(gguf_ ? gguf_layout(base.config()) : folder_layout(base.config())),
      type_(base, format.type, format.gguf) {
  check_tied_head(base);
  if (gguf_)
    plan_gguf();
  else
    plan_folder(format.shard_bytes);
  for (const auto& [name, content] : files_) bytes_ += content.size();
}

void ModelOutput::plan_folder(std::uint64_t shard_bytes) {
  std::vector<TensorGroup> groups;
  const std::string dtype = hf_dtype(type_.main());
  OrderedJson quantisation;
  for (const WeightSlot& slot : base_.slots()) {
    const StoredTensor stored = layout_.find(slot);
    if (const HeldFormat format = type_.format(slot)) {
      groups.push_back(quantised_tensors(stored.name, *format, slot.shape));
      quantisation = quantisation_config(format->encoding, dtype);
    } else {
      groups.push_back({{stored.name, stored.shape, &type_.encoder(slot)}});
    }
    slots_[groups.back().front().name] = &slot;
    for (const EncodedTensor& t : groups.back())
      bytes_ += t.bytes() + 256;  // and its line of the header
  }
  shards_ = split_into_shards(groups, shard_bytes);
  files_ = side_files(base_, dtype, quantisation);
  if (shards_.size() > 1) files_.emplace_back("model.safetensors.index.json", shard_index(shards_));
}

void ModelOutput::plan_gguf() {
  // Matrices that can't be of the type wanted, by the name of their own.
  std::map<std::string, std::vector<const WeightSlot*>> others;
  std::size_t matrices = 0;
  const GgmlEncoder* wanted = type_.wanted();
  for (const WeightSlot& slot : base_.slots()) {
    tensors_.push_back({layout_.find(slot).name, slot.shape, &type_.encoder(slot)});
    slots_[tensors_.back().name] = &slot;
    if (wanted && slot.linear && !is_vocabulary(slot)) {
      ++matrices;
      const StorageType* type = tensors_.back().type;
      if (type != wanted) others[type->name].push_back(&slot);
    }
    if (wanted && is_vocabulary(slot) && tensors_.back().type != wanted)
      notes_.push_back(concat(tensors_.back().name, " is stored as ", tensors_.back().type->name));
  }
  for (const auto& [type, slots] : others) {
    const WeightSlot& first = *slots.front();
    notes_.push_back(concat(slots.size(), " of ", matrices, " matrices are stored as ", type,
                            ", not ", wanted->name, ": rows of ", first.shape.cols(),
                            " values, as in ", layout_.find(first).name,
                            ", are not whole blocks of ", wanted->block_values,
                            "; `type` f16 stores all matrices alike"));
  }
  metadata_ = model_metadata(base_, type_.main(), notes_);
  if (std::vector<float> factors = rope_factors(base_); !factors.empty()) {
    const auto n = std::ssize(factors);
    tensors_.push_back({"rope_freqs.weight", Shape{n}, find_ggml_encoder("F32")});
    constants_["rope_freqs.weight"] = std::move(factors);
  }
  bytes_ = GgufWriter::file_bytes(metadata_, tensors_);
}

void ModelOutput::write_tensor(TensorWriter& file, const EncodedTensor& tensor,
                               RowPipe& pipe) const {
  if (auto constant = constants_.find(tensor.name); constant != constants_.end())
    return file.append(constant->second.data(), constant->second.size() * sizeof(float));
  const WeightSlot& slot = *slots_.at(tensor.name);
  const GgmlEncoder& encoder = type_.encoder(slot);
  const StoredTensor stored = layout_.find(slot);
  const std::int64_t rows = slot.shape.rows(), cols = slot.shape.cols();
  const std::int64_t step = base_.block_rows(slot);
  const std::int64_t row = slot.shape.rank() == 1 ? 1 : cols;  // a bias of q is permuted by element
  const float shift = gain_shift(base_.stored(slot), stored);
  std::vector<float> values;
  std::vector<std::uint8_t> bytes;
  for (std::int64_t begin = 0; begin < rows; begin += step) {
    const std::int64_t end = std::min(begin + step, rows);
    values.resize(static_cast<std::size_t>((end - begin) * cols));
    pipe.produce(slot, begin, end, values);
    require_finite(values, base_, slot);
    if (shift != 0)
      for (float& v : values) v += shift;
    stored.to_stored(values, row);
    require_held(round_to(encoder, values, bytes), encoder.name, tensor.name);
    file.append(bytes.data(), bytes.size());
    stored.to_ours(values, row);
    if (shift != 0)
      for (float& v : values) v -= shift;
    pipe.stored(slot, begin, end, values);
  }
}

void ModelOutput::write_quantised(TensorWriter& file, const WeightSlot& slot, RowPipe& pipe) const {
  const std::int64_t step = base_.block_rows(slot);
  auto span = [&](float* values, std::int64_t begin, std::int64_t end) {
    return std::span<float>(values, static_cast<std::size_t>((end - begin) * slot.shape.cols()));
  };
  const HostPlanes planes = quantise(type_.format(slot)->encoding, slot.shape, step,
                                     [&](std::int64_t begin, std::int64_t end, float* values) {
                                       pipe.produce(slot, begin, end, span(values, begin, end));
                                       require_finite(span(values, begin, end), base_, slot);
                                     });
  append_quantised(file, planes);
  std::vector<float> values;
  for (std::int64_t begin = 0; begin < slot.shape.rows(); begin += step) {
    const std::int64_t end = std::min(begin + step, slot.shape.rows());
    values.resize(static_cast<std::size_t>((end - begin) * slot.shape.cols()));
    pipe.produce(slot, begin, end, values);
    dequantise_rows(planes.view(), begin, end, values.data());
    require_held(every_finite(values), type_.name(), layout_.find(slot).name);
    pipe.stored(slot, begin, end, values);
  }
}

void ModelOutput::write(const PathOf& path_of, RowPipe& pipe) const {
  if (gguf_) {
    GgufWriter file(path_of("model.gguf"), metadata_, tensors_);
    for (const EncodedTensor& t : tensors_) write_tensor(file, t, pipe);
    file.commit();
    return;
  }
  for (const auto& [name, content] : files_) write_file_durably(path_of(name), content);
  for (const SafetensorsShard& shard : shards_) {
    SafetensorsWriter file(path_of(shard.file), {{"format", "pt"}}, shard.tensors());
    for (const TensorGroup& group : shard.groups) {
      const WeightSlot& slot = *slots_.at(group.front().name);
      if (type_.format(slot))
        write_quantised(file, slot, pipe);
      else
        write_tensor(file, group.front(), pipe);
    }
    file.commit();
  }
}

}  // namespace lk
