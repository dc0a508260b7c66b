// Whole weights in an adapter's file. PEFT writes the embedding and the head there when they are in
// modules_to_save, when the vocabulary was resized, or on demand. Left unchanged they are harmless;
// trained or resized they make the adapter more than LoRA.
#pragma once

#include "lora/adapter_io.h"
#include "modelfile/model_file.h"
#include "nn/transformer.h"

namespace lk {

// Checks that every one of file.whole_weights is the embedding or the head of the base, value for
// value; of `model` as far as its compute dtype tells. Throws InputError naming file and tensor.
void check_whole_weights(const AdapterFile& file, const Transformer& model);
void check_whole_weights(const AdapterFile& file, const ModelFile& base);

}  // namespace lk
