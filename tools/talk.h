// A conversation on a terminal.
#pragma once

#include <optional>
#include <string>

#include "nn/sampling.h"
#include "run/inference.h"
#include "tensor/error.h"

namespace lk::program {

// Answers lines from stdin on stdout until they end or the user enters "/exit". "/reset" forgets
// what was said, "/adapter NAME" switches to that adapter, "/adapter" to the base. `system` begins it.
// A line that can't be answered is said, and the next is read. Returns BadInput if there was one and
// stdin is no terminal, where nobody would see it.
ExitCode talk(InferenceModel& m, const SamplingSettings& sampling, const std::string& chat_template,
              const std::optional<std::string>& system);

}  // namespace lk::program
