// Checkpoint: everything that a run needs to go on exactly where it was, in one file.
#pragma once

#include <string>

#include "io/json_fwd.h"
#include "lora/trainer.h"

namespace lk {

// Writes folder/checkpoint.safetensors durably: A, B, both moments, the counters, and `identity`:
// the settings and fingerprints that a resumed run must share. Throws IoError.
void save_checkpoint(const std::string& folder, const Adapter& adapter, Trainer& trainer,
                     const Json& identity);

// Loads folder/checkpoint.safetensors into adapter and trainer. Throws InputError if the file is
// damaged, UsageError naming the first field of `identity` that differs (fields listed in
// `may_differ` excepted).
void load_checkpoint(const std::string& folder, Adapter& adapter, Trainer& trainer,
                     const Json& identity, const std::vector<std::string>& may_differ);

bool has_checkpoint(const std::string& folder);

}  // namespace lk
