#include "modelfile/model_output.h"

#include <cmath>

#include "io/durable.h"
#include "modelfile/model_files.h"

namespace lk {

namespace {

const GgmlEncoder* float_type(const std::string& stored) {
  const GgmlEncoder* type = find_ggml_encoder(stored);
  return type != nullptr && !type->quantised ? type : find_ggml_encoder("F32");
}

bool is_vocabulary(const WeightSlot& slot) {
  return slot.role == Role::Embedding || slot.role == Role::Head;
}

}  // namespace

void round_to(const GgmlEncoder& type, std::span<float> values, std::vector<std::uint8_t>& bytes,
              const std::string& what) {
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
  if (!finite)
    throw NonFiniteError(concat(what, ": a value is not finite, or too large for ", type.name));
}

ModelOutput::ModelOutput(const ModelSource& base, const OutputFormat& format)
    : base_(base),
      gguf_(format.gguf),
      layout_(gguf_ ? gguf_layout(base.config()) : folder_layout(base.config())) {
  if (!format.type.empty()) {
    wanted_ = find_ggml_encoder(format.type);
    if (wanted_ == nullptr || (wanted_->quantised && !gguf_))
      throw UsageError(concat("--type ", format.type, ": a ",
                              gguf_ ? "GGUF file is written as f32, f16, bf16, q8_0, q4_0 or q4_1"
                                    : "folder is written as f32, f16 or bf16"));
  }
  for (const WeightSlot& slot : base.slots()) {
    if (slot.linear && type_ == nullptr) type_ = choose_type(slot);
    slots_[layout_.find(slot).name] = &slot;
  }
  if (gguf_)
    plan_gguf();
  else
    plan_folder(format);
  for (const auto& [name, content] : files_) bytes_ += content.size();
}

const GgmlEncoder* ModelOutput::choose_type(const WeightSlot& slot) const {
  // llama.cpp wants F32 for these.
  if (gguf_ && (slot.shape.rank() == 1 || slot.role == Role::Positions))
    return find_ggml_encoder("F32");
  if (wanted_ == nullptr) return float_type(base_.stored_type(slot));
  if (slot.shape.cols() % wanted_->block_values != 0) return find_ggml_encoder("F16");
  // Rounding the vocabulary to 4 bits costs more than all other matrices.
  if (is_vocabulary(slot) && wanted_->block_bytes < 32 && wanted_->quantised)
    return find_ggml_encoder("Q8_0");
  return wanted_;
}

void ModelOutput::plan_folder(const OutputFormat& format) {
  std::vector<EncodedTensor> all;
  for (const WeightSlot& slot : base_.slots()) {
    StoredTensor stored = layout_.find(slot);
    all.push_back({std::move(stored.name), std::move(stored.shape), choose_type(slot)});
  }
  shards_ = split_into_shards(all, format.shard_bytes);
  files_ = model_files(base_, type_);
  if (shards_.size() > 1) files_.emplace_back("model.safetensors.index.json", shard_index(shards_));
  for (const EncodedTensor& t : all) bytes_ += t.bytes() + 256;  // and its line of the header
}

void ModelOutput::plan_gguf() {
  for (const WeightSlot& slot : base_.slots()) {
    tensors_.push_back({layout_.find(slot).name, slot.shape, choose_type(slot)});
    if (wanted_ && slot.linear && tensors_.back().type != wanted_ && !is_vocabulary(slot) &&
        notes_.empty())
      notes_.push_back(concat(tensors_.back().name, " and others are stored as F16: rows of ",
                              slot.shape.cols(), " values are not whole blocks of ",
                              wanted_->name));
    if (wanted_ && is_vocabulary(slot) && tensors_.back().type != wanted_)
      notes_.push_back(concat(tensors_.back().name, " is stored as ", tensors_.back().type->name));
  }
  metadata_ = model_metadata(base_, *type_);
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
    if (shift != 0)
      for (float& v : values) v += shift;
    stored.to_stored(values, row);
    round_to(*tensor.type, values, bytes, "tensor " + tensor.name);
    file.append(bytes.data(), bytes.size());
    stored.to_ours(values, row);
    if (shift != 0)
      for (float& v : values) v -= shift;
    pipe.stored(slot, begin, end, values);
  }
}

void ModelOutput::write(StagedOutput& out, RowPipe& pipe) const {
  if (gguf_) {
    GgufWriter file(out.file("model.gguf"), metadata_, tensors_);
    for (const EncodedTensor& t : tensors_) write_tensor(file, t, pipe);
    file.commit();
    return;
  }
  for (const auto& [name, content] : files_) write_file_durably(out.file(name), content);
  for (const SafetensorsShard& shard : shards_) {
    SafetensorsWriter file(out.file(shard.file), {{"format", "pt"}}, shard.tensors);
    for (const EncodedTensor& t : shard.tensors) write_tensor(file, t, pipe);
    file.commit();
  }
}

}  // namespace lk
