// A run's settings: which of them are refused, and which identify the run.
#pragma once

#include <string>

#include "io/json_fwd.h"
#include "run/finetune.h"
#include "text/dataset.h"

namespace lk {

// Refuses everything that can be refused before a file is touched. Throws UsageError naming the
// flag.
void validate_settings(const FinetuneSettings& settings);

// The settings and fingerprints that identify a run: a resumed run must agree in all of them.
Json run_identity(const FinetuneSettings& settings, std::int64_t steps, const std::string& base,
                  const Dataset& data, DType dtype, const LoraConfig& lora);

}  // namespace lk
