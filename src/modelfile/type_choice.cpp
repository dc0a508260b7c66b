#include "modelfile/type_choice.h"

#include <algorithm>

namespace lk {
namespace {

std::string upper(std::string text) {
  for (char& c : text)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return text;
}

std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

BasePrecision own_precision(const std::string& type) {
  const auto precision = quantising_precision(lower(type)).value_or(BasePrecision::Dense);
  return precision == BasePrecision::Fp8Head ? BasePrecision::Dense
                                             : precision;  // none is written so
}

// The type of other files that takes about as many bits.
const char* instead(bool gguf, const std::string& type) {
  if (gguf) return own_precision(type) == BasePrecision::Fp8 ? "q8_0" : "q4_0";
  return upper(type) == "Q8_0" ? "fp8" : "nf4";
}

}  // namespace

// What embedding and head take where matrices take `type`: at least 6 bits.
const GgmlEncoder& vocabulary_type(const GgmlEncoder& type) {
  const double bits = 8.0 * type.block_bytes / type.block_values;
  if (bits > 6) return type;
  return *find_ggml_encoder(type.block_values == 256 ? "Q6_K" : "Q8_0");
}

bool is_vocabulary(const WeightSlot& slot) {
  return slot.role == Role::Embedding || slot.role == Role::Head;
}

TypeChoice::TypeChoice(const ModelFile& base, const std::string& type, bool gguf)
    : base_(base), gguf_(gguf) {
  const BasePrecision precision = own_precision(type);
  wanted_ = find_ggml_encoder(upper(type));
  const bool known = wanted_ != nullptr || precision != BasePrecision::Dense;
  const bool other_format =
      gguf ? precision != BasePrecision::Dense : wanted_ != nullptr && wanted_->quantised;
  if (!type.empty() && (!known || other_format))
    throw UsageError(concat("`type` ", type, ": a ",
                            gguf ? concat("GGUF file is written as ", ggml_encoder_names())
                                 : "folder is written as f32, f16, bf16, nf4, fp4 or fp8",
                            other_format ? concat("; ", instead(gguf, type), " is nearest") : ""));
  if (precision != BasePrecision::Dense) {
    choose_formats(precision, type);
    return;
  }
  name_types();
}

void TypeChoice::name_types() {
  std::vector<const GgmlEncoder*> types;
  for (const WeightSlot& slot : base_.slots()) {
    if (!slot.linear || slot.role == Role::Head) continue;
    const GgmlEncoder* type = &encoder(slot);
    if (std::find(types.begin(), types.end(), type) == types.end()) types.push_back(type);
  }
  main_ = types.front(), quantised_ = main_->quantised;
  name_ = main_->name;
  if (wanted_ != nullptr || types.size() == 1) return;
  for (std::size_t i = 1; i < types.size(); ++i) name_ += concat(" and ", types[i]->name);
  main_ = find_ggml_encoder("F32");
}

void TypeChoice::choose_formats(BasePrecision precision, const std::string& type) {
  const bool fp8 = precision == BasePrecision::Fp8;
  require(!fp8 || !files_of(base_.config()).conv1d, "`type` ", type, ": ",
          base_.config().architecture,
          " has no linear layers for compressed-tensors, which names them; nf4 and fp4 do");
  const std::vector<HeldFormat> formats = held_formats(base_.config(), {precision, {}});
  for (std::size_t i = 0; i < formats.size(); ++i) {
    if (!formats[i]) continue;
    const WeightSlot& slot = base_.slots()[i];
    // The next matrix's scales are F32 numbers of the same file, which readers want aligned.
    require(!fp8 || slot.shape.numel() % 4 == 0, "`type` ", type, ": ", slot.name, " has ",
            slot.shape.numel(), " values, no multiple of 4");
    formats_.emplace(slot.name, *formats[i]);
  }
  main_ = &encoder(base_.slots().front());
  name_ = base_precision_name(precision), quantised_ = true;
}

HeldFormat TypeChoice::format(const WeightSlot& slot) const {
  const auto at = formats_.find(slot.name);
  return at == formats_.end() ? HeldFormat{} : at->second;
}

bool TypeChoice::rounds(const WeightSlot& slot, bool changed) const {
  if (format(slot)) return true;
  const GgmlEncoder& type = encoder(slot);
  if (type.quantised) return true;
  return type.name != std::string("F32") && (changed || base_.stored_type(slot) != type.name);
}

const GgmlEncoder& TypeChoice::encoder(const WeightSlot& slot) const {
  auto named = [](const char* name) -> const GgmlEncoder& { return *find_ggml_encoder(name); };
  // llama.cpp wants F32 for these.
  if (gguf_ && (slot.shape.rank() == 1 || slot.role == Role::Positions)) return named("F32");
  if (wanted_ == nullptr) {
    const GgmlEncoder* stored = find_ggml_encoder(base_.stored_type(slot));
    if (stored != nullptr && !stored->quantised) return *stored;
    return named(formats_.empty() ? "F32" : "BF16");
  }
  const GgmlEncoder* type = wanted_;
  if (is_vocabulary(slot) && type->quantised) type = &vocabulary_type(*type);
  while (slot.shape.cols() % type->block_values != 0) type = &named(type->narrow);
  return *type;
}

}  // namespace lk
