// A ModelConfig as GGUF metadata.
#pragma once

#include "io/gguf_write.h"
#include "nn/config.h"

namespace lk {

// general.architecture and the keys under it. Keys: ggml's docs/gguf.md, and what llama.cpp reads.
// Throws UsageError naming the field for what GGUF, or every reader of this architecture, has no
// words for: such a file would load elsewhere and compute something else.
GgufWriter::Metadata config_to_gguf(const ModelConfig& config);

}  // namespace lk
