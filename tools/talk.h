// A conversation on a terminal.
#pragma once

#include <optional>
#include <string>

#include "nn/sampling.h"
#include "run/inference.h"

namespace lk::program {

// Answers lines from stdin on stdout until they end or the user enters "/exit". "/reset" forgets
// what was said, "/adapter NAME" switches to that adapter, "/adapter" to the base. `system` begins it.
void talk(InferenceModel& m, const SamplingSettings& sampling, const std::string& chat_template,
          const std::optional<std::string>& system);

}  // namespace lk::program
