// Writes a LoRA adapter as a GGUF file, for llama.cpp and programs built on it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lk {

struct GgufAdapter {
  std::int64_t modules = 0, rank = 0;  // the largest rank
  double alpha = 0;                    // as written
  std::vector<std::string> warnings;   // unproven_base() and disagreements()
};

// Writes the PEFT adapter in `folder`, trained on `model` (a GGUF file or folder; only its config
// is read), to `out`, which must not exist. F32; B's rows are in the order in which GGUF has the
// matrix's. llama.cpp scales every module by the file's one alpha / the module's rank, whatever the
// adapter says, so alpha is written as scale * rank: also rsLoRA's. Where modules differ in that
// product, it is that of the config's r and lora_alpha, and the other modules' B take the rest of
// their scale, rounded once to F32. Read back and compared before it gets its name. Throws
// InputError naming what does not fit the model, UsageError, IoError. Format: llama.cpp's
// convert_lora_to_gguf.py and llama-adapter.cpp.
GgufAdapter export_gguf_adapter(const std::string& model, const std::string& folder,
                                const std::string& out);

}  // namespace lk
