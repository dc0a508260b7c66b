// Writes a ModelConfig as GGUF metadata.
#pragma once

#include "io/gguf_write.h"
#include "nn/config.h"

namespace lk {

// Makes general.architecture and the keys under it. Keys: ggml's docs/gguf.md, and what llama.cpp
// reads. Throws UsageError naming the field that GGUF, or every reader of this architecture, can't
// express: such a file would load elsewhere and compute something else.
GgufWriter::Metadata config_to_gguf(const ModelConfig& config);

}  // namespace lk
