// Which settings of a run are refused.
#pragma once

#include "run/finetune.h"

namespace lk {

// Refuses everything that can be refused before a file is touched. Throws UsageError naming the
// flag.
void validate_settings(const FinetuneSettings& settings);

}  // namespace lk
