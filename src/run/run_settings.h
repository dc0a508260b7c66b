// A run's settings: which are refused, and which make it the run it is.
#pragma once

#include <string>

#include "io/json_fwd.h"
#include "run/finetune.h"
#include "text/dataset.h"

namespace lk {

// Everything that can be refused before a file is touched: UsageError naming the flag.
void validate_settings(const FinetuneSettings& settings);

// The settings and fingerprints that make a run this run: a resumed one must agree in all of them.
Json run_identity(const FinetuneSettings& settings, std::int64_t steps, const std::string& base,
                  const Dataset& data, DType dtype, const LoraConfig& lora);

}  // namespace lk
