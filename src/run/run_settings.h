// Which settings of a run are refused.
#pragma once

#include "run/finetune.h"

namespace lk {

// Refuses everything that can be refused before a file is touched. Throws UsageError naming the
// flag.
// `own_rows`: they come from the caller, not from files.
void validate_settings(const FinetuneSettings& settings, bool own_rows = false);
// The part of it that says what a step is and takes, which a plan has too: methods, rows, memory.
void validate_step(const FinetuneSettings& settings);

}  // namespace lk
