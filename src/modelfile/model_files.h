// What a model is besides its tensors: the files of a Hugging Face folder, or GGUF's metadata,
// carried along from the base or made from the base's other format.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "io/gguf_write.h"
#include "modelfile/model_source.h"

namespace lk {

// Name and content of config.json, generation_config.json and the tokenizer's files. A folder's are
// copied, but for the dtype in config.json, if `type` is another than it says (null: the base's).
// Throws InputError, UsageError.
std::vector<std::pair<std::string, std::string>> model_files(const ModelSource& base,
                                                             const GgmlEncoder* type);

// GGUF metadata for matrices of `type`. A GGUF file's is copied, but for the keys that say how
// numbers are stored. From a folder only models with a byte-level BPE tokenizer can be converted;
// others are an InputError.
GgufWriter::Metadata model_metadata(const ModelSource& base, const GgmlEncoder& type);

// rope_freqs.weight: the D/2 divisors of the rotary frequencies, empty if GGUF needs none.
std::vector<float> rope_factors(const ModelSource& base);

}  // namespace lk
