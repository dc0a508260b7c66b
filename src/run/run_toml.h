// run.toml: a run's settings as the flags of tools/finetune, to run it again.
#pragma once

#include <string>

#include "run/finetune.h"

namespace lk {

// The settings, as they were resolved, in lines of TOML: `finetune --config run.toml --out DIR`
// trains the same adapter, byte for byte.
std::string run_toml(const FinetuneSettings& settings);

}  // namespace lk
