// TypeChoice: as what each tensor of a model is written, by the type that was asked for.
//
//   nothing                as the base has it; F32 where the base is quantised
//   f32, f16, bf16         every matrix alike
//   q8_0 ... q2_k          blocks of ggml, in GGUF files; embedding and head take at least 6 bits, and
//                          rows that are not whole blocks another type of about as many
//   nf4, fp4, fp8          a folder's projections, quantised as base_precision.h does it when a base
//                          is loaded; what stays dense keeps its type, BF16 where the base is
//                          quantised
#pragma once

#include <map>
#include <string>

#include "io/ggml_encode.h"
#include "modelfile/base_precision.h"
#include "modelfile/model_file.h"

namespace lk {

class TypeChoice {
 public:
  // Throws UsageError for a type that the format or the model's family has no words for, naming
  // what to take instead.
  TypeChoice(const ModelFile& base, const std::string& type, bool gguf);

  // The type of the matrices that adapters touch: "BF16", "Q4_0", "nf4"; of several that a base brings
  // all: "F32 and BF16".
  const std::string& name() const { return name_; }
  // Whether they are integers or codes under scales, not floating-point numbers.
  bool quantised() const { return quantised_; }
  // The one type of ggml that was asked for; null: none was.
  const GgmlEncoder* wanted() const { return wanted_; }
  // The type of those matrices, F32 where a base brings several, as it holds them all; of the
  // embedding where they have a format.
  const GgmlEncoder& main() const { return *main_; }

  // The format that a folder holds a matrix in; nothing for what has an encoder.
  HeldFormat format(const WeightSlot& slot) const;
  const GgmlEncoder& encoder(const WeightSlot& slot) const;
  // Whether numbers of a tensor are rounded as it is written, beyond F32: never where it keeps the
  // type that the base has it in and is not `changed`.
  bool rounds(const WeightSlot& slot, bool changed) const;

 private:
  void name_types();
  void choose_formats(BasePrecision precision, const std::string& type);

  const ModelFile& base_;
  bool gguf_, quantised_ = false;
  const GgmlEncoder *wanted_ = nullptr, *main_ = nullptr;
  std::map<std::string, QuantisedFormat> formats_;  // by the slot's name
  std::string name_;
};

// Embedding and head: rounding the vocabulary to 4 bits costs more than all other matrices.
bool is_vocabulary(const WeightSlot& slot);

}  // namespace lk
